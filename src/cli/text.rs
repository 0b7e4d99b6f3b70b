//! Units, times and tables for people; and reading what people write.

use imgstore::model::account::Tag;
use imgstore::model::units::{TimeMs, VOLUME_BYTES_MAX};

pub use imgstore::model::units::display_bytes as bytes;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// A part of a whole: `12.3 %`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

/// So many of something: `1 pack`, `2 packs`.
pub fn counted(count: impl Into<u64>, one: &str) -> String {
    let count = count.into();
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// A time in UTC to the second: `2026-11-21T03:30:00Z`.
pub fn time(time_ms: TimeMs) -> String {
    // The year 9999 is what the text form reaches to.
    let at = UNIX_EPOCH + Duration::from_millis(time_ms.min(253_402_300_799_999));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// A time to the millisecond, as EC2 writes it.
pub fn time_millis(time_ms: TimeMs) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(time_ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(at).to_string()
}

/// Reads `512M`, `512MiB`, `1G`, `4096`: powers of 1024; `512MB`: powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is no size; write 512MiB or 4G"))?;
    let power = |letter: char| "KMGTPE".find(letter.to_ascii_uppercase()).map(|at| at as u32 + 1);
    let mut letters = unit.chars();
    let factor = match (letters.next(), letters.as_str()) {
        (None, _) | (Some('B'), "") => Some(1),
        (Some(letter), "" | "i" | "iB") => power(letter).map(|power| 1024u64.pow(power)),
        (Some(letter), "B") => power(letter).map(|power| 1000u64.pow(power)),
        _ => None,
    };
    let factor = factor.ok_or_else(|| format!("'{unit}' is no unit; write 512MiB or 4G"))?;
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too large"))
}

/// Reads a memory budget: 16 MiB at least. Less would not be kept to.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 16 << 20;
    let size = parse_bytes(text)?;
    if size < LEAST {
        return Err(format!("'{text}' is less than {}, the least", bytes(LEAST)));
    }
    Ok(size)
}

/// Reads the size of a volume: at most what the largest has.
pub fn parse_volume_bytes(text: &str) -> Result<u64, String> {
    let size = parse_bytes(text)?;
    if size > VOLUME_BYTES_MAX {
        return Err(format!("'{text}' is more than {}, the largest volume", bytes(VOLUME_BYTES_MAX)));
    }
    Ok(size)
}

/// A path for a JSON document, which has no other bytes than UTF-8's.
pub fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Reads a time as `time` writes it.
pub fn parse_time(text: &str) -> Result<TimeMs, String> {
    let at = humantime::parse_rfc3339_weak(text)
        .map_err(|_| format!("'{text}' is no time; write 2027-01-31T12:00:00Z"))?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| "a time before 1970".to_owned())?;
    TimeMs::try_from(since.as_millis()).map_err(|_| "a time too far away".to_owned())
}

/// Reads a length of time, in milliseconds.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(text).map_err(|e| format!("{e}; for example 12h or 3days"))?;
    u64::try_from(duration.as_millis()).map_err(|_| "it is too long".to_owned())
}

/// Reads `KEY=VALUE`.
pub fn parse_tag(text: &str) -> Result<Tag, String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is no tag; write KEY=VALUE"))?;
    Ok(Tag { key: key.to_owned(), value: value.to_owned() })
}

/// Rows under a header, columns as wide as they need to be. Columns whose header starts with `>` are
/// right-aligned.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('>')).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([names[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let width = widths[column];
            // Writing to a String cannot fail.
            let _ = if header[column].starts_with('>') {
                write!(line, "{gap}{cell:>width$}")
            } else {
                write!(line, "{gap}{cell:<width$}")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
    text
}

/// Whether a character shows others in another order than they are in.
pub const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text without what a terminal would obey.
pub fn without_controls(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let harmless = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c };
    text.chars().map(harmless).collect::<String>().into_bytes()
}

/// A text from outside made safe for a terminal: control characters are shown, not obeyed.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() || is_reordering(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("1k"), Ok(1024));
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("512MB"), Ok(512_000_000));
        for bad in ["", "x", "1X", "1MiBs", "-1", "99999999999G", "20E", "1BB"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tables_align() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&["NAME", ">N"], &rows), "NAME   N\na      1\nlong  22\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
