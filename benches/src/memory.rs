//! Memory of this process, as Linux counts it.

/// Resident bytes; zeros where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Most since the process began, or since [`reset_peak`].
    pub peak: u64,
    /// Now, not backed by a file.
    pub anonymous: u64,
    /// Now, backed by files: the program and memory maps.
    pub file: u64,
}

impl Resident {
    /// Now.
    pub fn now() -> Resident {
        std::fs::read_to_string("/proc/self/status").map(|text| Resident::parse(&text)).unwrap_or_default()
    }

    fn parse(status: &str) -> Resident {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kilobytes.unwrap_or(0) * 1024
        };
        Resident { peak: field("VmHWM:"), anonymous: field("RssAnon:"), file: field("RssFile:") }
    }

    /// Resident bytes now.
    pub fn total(&self) -> u64 {
        self.anonymous + self.file
    }
}

/// Forgets the peak so far, where the system can: what probes took is not the model's.
pub fn reset_peak() {
    // proc_pid_clear_refs(5). Where it fails the peak is that of the whole process, which is no less.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status() {
        let text =
            "Name:\tbench\nVmPeak:\t 900 kB\nVmHWM:\t  64 kB\nVmRSS:\t  48 kB\nRssAnon:\t  32 kB\nRssFile:\t 16 kB\n";
        let resident = Resident::parse(text);
        assert_eq!(resident, Resident { peak: 65536, anonymous: 32768, file: 16384 });
        assert_eq!(resident.total(), 49152);
        assert_eq!(Resident::parse(""), Resident::default());
    }
}
