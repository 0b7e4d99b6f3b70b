//! Archives of virtual machines, made by hand.
#![allow(dead_code, reason = "each of the tests that include this file uses a part of it")]

const BLOCK: usize = 512;

/// A description of a machine with one disk, `disk.img`, of whatever its bytes say.
pub const OVF: &str = r#"<?xml version="1.0"?>
<Envelope xmlns:o="o" xmlns:r="r" xmlns:v="v">
<References><File o:href="disk.img" o:id="f"/></References>
<DiskSection><Disk o:diskId="d" o:fileRef="f" o:capacity="1" o:capacityAllocationUnits="byte * 2^9"/>
<Disk o:diskId="e" o:capacity="2" o:capacityAllocationUnits="byte * 2^20"/></DiskSection>
<VirtualSystem o:id="m"><Name>a machine</Name>
<OperatingSystemSection o:id="94" v:osType="ubuntu64Guest"><Description>Ubuntu</Description></OperatingSystemSection>
<VirtualHardwareSection>
<Item><r:InstanceID>1</r:InstanceID><r:ResourceType>6</r:ResourceType></Item>
<Item><r:AddressOnParent>0</r:AddressOnParent><r:ElementName>/dev/xvda</r:ElementName><r:HostResource>ovf:/disk/d</r:HostResource><r:Parent>1</r:Parent><r:ResourceType>17</r:ResourceType></Item>
<Item><r:AddressOnParent>1</r:AddressOnParent><r:HostResource>/disk/e</r:HostResource><r:Parent>1</r:Parent><r:ResourceType>17</r:ResourceType></Item>
<v:Config v:key="firmware" v:value="efi"/>
</VirtualHardwareSection></VirtualSystem></Envelope>
"#;

/// The disk of that machine.
pub const DISK: [u8; BLOCK] = [7; BLOCK];

/// Checksums of the disk and of [`OVF`].
pub const SUMS: &str = "SHA1(disk.img)= 0000000000000000000000000000000000000000\nSHA256(m.ovf)= 0000000000000000000000000000000000000000000000000000000000000000\n";

/// An archive of some members.
pub fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut header);
        bytes.extend(header);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// Gives every header the checksum that fits, as far as the archive can be followed.
pub fn seal_all(bytes: &mut [u8]) {
    let mut at = 0;
    for _ in 0..64 {
        let Some(header) = bytes.get_mut(at..at + BLOCK) else { return };
        if header.iter().all(|&byte| byte == 0) {
            return;
        }
        seal(header);
        let digits = header[124..135].iter().take_while(|byte| (b'0'..=b'7').contains(byte));
        let len =
            digits.fold(0_usize, |len, digit| len.wrapping_mul(8).wrapping_add(usize::from(digit - b'0')));
        at = at.saturating_add(BLOCK).saturating_add(len.next_multiple_of(BLOCK));
    }
}

fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
