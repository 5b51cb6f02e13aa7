//! How much memory this process may use: the machine's, or less where a control group limits it.
use anyfleet_tensor::DeviceMemory;
use std::path::{Path, PathBuf};

/// Memory now; `None` in both fields where the system does not say.
pub(crate) fn measure() -> DeviceMemory {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let info = read(Path::new("/proc/meminfo")).unwrap_or_default();
    let mut memory =
        DeviceMemory { total: kilobytes(&info, "MemTotal:"), available: kilobytes(&info, "MemAvailable:") };
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    for (folder, names) in group_folders(&groups) {
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        let Some(limit) = number(names.limit) else { continue };
        let used = number(names.used).unwrap_or(0);
        // File pages the kernel would give back do not count as used.
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = field(&stat, names.inactive).unwrap_or(0);
        limit_to(&mut memory, limit, limit.saturating_sub(used.saturating_sub(reclaimable)));
    }
    memory
}

fn limit_to(memory: &mut DeviceMemory, limit: u64, left: u64) {
    // A group without a limit says "max" or a number near 2^63.
    if memory.total.is_none_or(|total| limit < total) && limit < 1 << 60 {
        memory.total = Some(limit);
        memory.available = Some(memory.available.map_or(left, |available| available.min(left)));
    }
}

/// File names of one version of control groups.
#[derive(Clone, Copy)]
struct Names {
    limit: &'static str,
    used: &'static str,
    inactive: &'static str,
}

const V2: Names = Names { limit: "memory.max", used: "memory.current", inactive: "inactive_file" };
const V1: Names =
    Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", inactive: "total_inactive_file" };

/// Folders of this process's group and its ancestors, whose limits all hold, from the text of
/// `/proc/self/cgroup`.
fn group_folders(text: &str) -> Vec<(PathBuf, Names)> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names) = match controllers {
            "" => (Path::new("/sys/fs/cgroup"), V2),
            list if list.split(',').any(|c| c == "memory") => (Path::new("/sys/fs/cgroup/memory"), V1),
            _ => continue,
        };
        let group = root.join(path.trim_start_matches('/'));
        folders.extend(group.ancestors().take_while(|f| f.starts_with(root)).map(|f| (f.to_path_buf(), names)));
    }
    folders
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo_and_groups() {
        let info = "MemTotal:       24000 kB\nMemFree: 1 kB\nMemAvailable:   12000 kB\n";
        assert_eq!(kilobytes(info, "MemTotal:"), Some(24_576_000));
        assert_eq!(kilobytes(info, "MemAvailable:"), Some(12_288_000));
        assert_eq!(kilobytes(info, "Swap:"), None);
        let paths = |text| group_folders(text).into_iter().map(|(p, _)| p).collect::<Vec<_>>();
        assert_eq!(paths("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(PathBuf::from));
        assert_eq!(
            paths("5:cpu,memory:/x\n4:pids:/y\nnonsense\n"),
            ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"].map(PathBuf::from)
        );
    }

    #[test]
    fn the_tightest_limit_holds() {
        let mut memory = DeviceMemory { total: Some(1000), available: Some(800) };
        limit_to(&mut memory, u64::MAX, u64::MAX);
        assert_eq!(memory, DeviceMemory { total: Some(1000), available: Some(800) });
        limit_to(&mut memory, 500, 900);
        assert_eq!(memory, DeviceMemory { total: Some(500), available: Some(800) });
        limit_to(&mut memory, 300, 100);
        assert_eq!(memory, DeviceMemory { total: Some(300), available: Some(100) });
    }
}
