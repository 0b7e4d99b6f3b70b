//! EC2's enumerations: each value is a type's variant and has EC2's word.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every value's word, as EC2 spells it.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// EC2's word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("expected one of: {}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

words!(
    /// The processor that an image is for.
    Architecture {
        /// 32-bit x86.
        I386 = "i386",
        /// 64-bit x86.
        X86_64 = "x86_64",
        /// 64-bit ARM.
        Arm64 = "arm64",
        /// macOS on 64-bit x86.
        X86_64Mac = "x86_64_mac",
        /// macOS on 64-bit ARM.
        Arm64Mac = "arm64_mac",
    }
);
words!(
    /// How the guest is virtualized.
    VirtualizationType {
        /// Hardware virtual machine.
        Hvm = "hvm",
        /// Paravirtual.
        Paravirtual = "paravirtual",
    }
);
words!(
    /// The firmware that boots the image.
    BootMode {
        /// BIOS.
        LegacyBios = "legacy-bios",
        /// UEFI.
        Uefi = "uefi",
        /// UEFI where the machine has it, BIOS otherwise.
        UefiPreferred = "uefi-preferred",
    }
);
words!(
    /// What holds the root device.
    RootDeviceType {
        /// A volume made from a snapshot.
        Ebs = "ebs",
        /// A template copied to the instance's own disk.
        InstanceStore = "instance-store",
    }
);
words!(
    /// An image's state.
    ImageState {
        /// Being made.
        Pending = "pending",
        /// Usable.
        Available = "available",
        /// Its registration was refused.
        Invalid = "invalid",
        /// Removed.
        Deregistered = "deregistered",
        /// Not usable for now.
        Transient = "transient",
        /// Could not be made.
        Failed = "failed",
        /// Making it met an error.
        Error = "error",
        /// Switched off by its owner.
        Disabled = "disabled",
    }
);
words!(
    /// An instance's state.
    InstanceState {
        /// Being launched.
        Pending = "pending",
        /// Its disks stand, and a machine may write to them.
        Running = "running",
        /// Being stopped.
        Stopping = "stopping",
        /// Its disks stand, and nothing writes to them.
        Stopped = "stopped",
        /// Being terminated.
        ShuttingDown = "shutting-down",
        /// Gone.
        Terminated = "terminated",
    }
);
words!(
    /// A volume's state.
    VolumeState {
        /// Not attached.
        Available = "available",
        /// Attached.
        InUse = "in-use",
    }
);
words!(
    /// A snapshot's state.
    SnapshotState {
        /// Still being written.
        Pending = "pending",
        /// Whole and readable.
        Completed = "completed",
        /// Damage was found.
        Error = "error",
    }
);
words!(
    /// The kind of an EBS volume.
    VolumeType {
        /// General purpose, third generation.
        Gp3 = "gp3",
        /// General purpose, second generation.
        Gp2 = "gp2",
        /// Provisioned operations.
        Io1 = "io1",
        /// Provisioned operations, second generation.
        Io2 = "io2",
        /// Throughput optimised.
        St1 = "st1",
        /// Cold.
        Sc1 = "sc1",
        /// Magnetic.
        Standard = "standard",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_parse_back() {
        for word in Architecture::WORDS {
            assert_eq!(word.parse::<Architecture>().unwrap().as_str(), *word);
        }
        assert!("amd64".parse::<Architecture>().unwrap_err().contains("x86_64"));
    }
}
