//! Devices as they are written on the command line.

use super::parse_id;
use crate::cli::error::CliError;
use crate::cli::text::parse_bytes;
use imgstore::ops::devices::DeviceSpec;

/// Reads `NAME=SNAP[:OPTS]`, `NAME=:size=BYTES[,OPTS]`, or `NAME=ephemeralN`: a device of a new image.
pub fn parse_device(text: &str) -> Result<DeviceSpec, CliError> {
    let form = "NAME=SNAP[:OPTS], NAME=:size=BYTES[,OPTS] or NAME=ephemeralN";
    let (name, rest) =
        text.split_once('=').ok_or_else(|| usage(text, "no '=' after the device's name", form))?;
    let (content, options) = rest.split_once(':').unwrap_or((rest, ""));
    let mut spec = DeviceSpec { device_name: name.to_owned(), ..DeviceSpec::default() };
    if let Some(number) = content.strip_prefix("ephemeral") {
        spec.ephemeral = Some(ephemeral(number).map_err(|why| usage(text, &why, form))?);
    } else if !content.is_empty() {
        spec.snapshot_id = Some(parse_id(content)?);
    }
    add_options(&mut spec, options).map_err(|why| why.told(text, form))?;
    if spec.no_device || (options.contains("snapshot=") && !content.is_empty()) {
        return Err(usage(text, "that makes no sense for a device of a new image", form));
    }
    Ok(spec)
}

/// Reads `NAME:OPTS`: a change of a mapping.
pub fn parse_override(text: &str) -> Result<DeviceSpec, CliError> {
    let form = "NAME:OPTS, OPTS of size=BYTES, type=T, iops=N, keep, delete, snapshot=SNAP, ephemeralN, none";
    let (name, options) =
        text.split_once(':').ok_or_else(|| usage(text, "no ':' after the device's name", form))?;
    let mut spec = DeviceSpec { device_name: name.to_owned(), ..DeviceSpec::default() };
    add_options(&mut spec, options).map_err(|why| why.told(text, form))?;
    if options.is_empty() {
        return Err(usage(text, "nothing is said of it", form));
    }
    Ok(spec)
}

/// Why an option cannot be read.
enum Wrong {
    Form(String),
    Id(CliError),
}

impl Wrong {
    fn told(self, text: &str, form: &str) -> CliError {
        match self {
            Self::Form(why) => usage(text, &why, form),
            Self::Id(error) => error,
        }
    }
}

fn usage(text: &str, why: &str, form: &str) -> CliError {
    CliError::Usage(format!("--device {text}: {why}; write {form}"))
}

fn ephemeral(number: &str) -> Result<u8, String> {
    number.parse().map_err(|_| format!("'ephemeral{number}' is none of ephemeral0 to ephemeral23"))
}

/// Of two that are said, neither is meant more than the other.
fn once<T>(place: &mut Option<T>, value: T, option: &str) -> Result<(), Wrong> {
    match place.replace(value) {
        Some(_) => Err(Wrong::Form(format!("'{option}' after another of its kind"))),
        None => Ok(()),
    }
}

fn add_options(spec: &mut DeviceSpec, options: &str) -> Result<(), Wrong> {
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                once(&mut spec.volume_bytes, parse_bytes(size).map_err(Wrong::Form)?, option)?;
            }
            Some(("type", kind)) => {
                once(&mut spec.volume_type, kind.parse().map_err(Wrong::Form)?, option)?;
            }
            Some(("iops", count)) => {
                let not_a_number = |_| Wrong::Form(format!("'{count}' is no number"));
                once(&mut spec.iops, count.parse().map_err(not_a_number)?, option)?;
            }
            Some(("snapshot", id)) => {
                once(&mut spec.snapshot_id, parse_id(id).map_err(Wrong::Id)?, option)?;
            }
            None if option == "keep" => once(&mut spec.delete_on_termination, false, option)?,
            None if option == "delete" => once(&mut spec.delete_on_termination, true, option)?,
            None if option == "none" => spec.no_device = true,
            None if let Some(number) = option.strip_prefix("ephemeral") => {
                once(&mut spec.ephemeral, ephemeral(number).map_err(Wrong::Form)?, option)?;
            }
            _ => return Err(Wrong::Form(format!("'{option}' is no option"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_with_their_options() {
        let spec = parse_device("/dev/xvdb=:size=8G,keep,type=io2,iops=100").unwrap();
        assert_eq!((spec.snapshot_id, spec.volume_bytes, spec.iops), (None, Some(8 << 30), Some(100)));
        assert_eq!(spec.delete_on_termination, Some(false));
        assert_eq!(parse_device("/dev/xvdc=ephemeral3").unwrap().ephemeral, Some(3));
        for bad in ["/dev/xvdb", "/dev/xvdb=vol-1", "/dev/xvdb=:speed=1", "/dev/xvdb=:none", "x=ephemeral300"]
        {
            assert!(parse_device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn overrides_are_read_with_their_options() {
        let spec = parse_override("/dev/xvda:size=20G,delete").unwrap();
        assert_eq!((spec.volume_bytes, spec.delete_on_termination), (Some(20 << 30), Some(true)));
        assert!(parse_override("/dev/xvdb:none").unwrap().no_device);
        assert_eq!(parse_override("/dev/xvdb:ephemeral0").unwrap().ephemeral, Some(0));
        let twice = ["x:size=1M,size=2M", "x:keep,delete", "x:type=gp3,type=gp3", "x:ephemeral0,ephemeral1"];
        let bad = ["/dev/xvda", "/dev/xvda:", "/dev/xvda:big", "/dev/xvda:iops=many", "x:snapshot=ami-1"];
        for bad in bad.into_iter().chain(twice) {
            assert!(parse_override(bad).is_err(), "{bad}");
        }
    }
}
