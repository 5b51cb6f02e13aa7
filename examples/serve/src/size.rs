//! Sizes as people write them.

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Bytes in `64MiB`, `1.5 GiB`, `2gb`, `4096`; at least one.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit = UNITS.iter().find_map(|&(unit, bytes)| {
        let at = text.len().checked_sub(unit.len())?;
        text.get(at..)?.eq_ignore_ascii_case(unit).then(|| (text[..at].trim_end(), bytes))
    });
    let (number, scale) = unit.unwrap_or((text, 1));
    let bytes = match number.parse::<u64>() {
        Ok(n) => n.checked_mul(scale),
        Err(_) => number
            .parse::<f64>()
            .ok()
            .filter(|n| number.starts_with(|c: char| c.is_ascii_digit()) && n * (scale as f64) < u64::MAX as f64)
            .map(|n| (n * scale as f64) as u64),
    };
    bytes
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "expected a size such as 64MiB, 1.5GiB, 2GB or a number of bytes".into())
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("2GiB", 2 << 30),
            ("1.5 gib", 3 << 29),
            ("2GB", 2_000_000_000),
            ("500kb", 500_000),
            ("4096", 4096),
            ("4096B", 4096),
            (" 1TiB ", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GiB", "0", "-1GiB", "1.2.3MB", "64M", "infGB", "nanGB", "1e30GB", "99999999999TiB", "5 parsecs", "é"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
