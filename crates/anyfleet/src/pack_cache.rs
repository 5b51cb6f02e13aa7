//! Where packed weights are kept between starts.
use anyfleet_weights::pack;
use std::path::PathBuf;
use std::str::FromStr;

/// Packed weights below this size are not worth a file in the user's folder: packing them takes
/// milliseconds.
const WORTH_KEEPING: u64 = 64 << 20;

/// Where packed weights are kept between starts, so that the next one maps them instead of packing them.
///
/// A pack is one file for a checkpoint, weight format and device layout, about as large as the packed
/// weights. It is written in the background after the first load, shared by all processes that use it,
/// replaced when the checkpoint changes, and may be deleted at any time. The packs of a folder take at
/// most 64 GiB; those used longest ago make room. Beside them are kernels as a GPU's driver compiled them, in
/// `anyfleet/kernels` by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PackCache {
    /// Nowhere: weights are packed at every start.
    #[default]
    Off,
    /// In the user's cache folder, `$XDG_CACHE_HOME/anyfleet/packs` or `~/.cache/anyfleet/packs`, if the
    /// packed weights have at least 64 MiB.
    Default,
    /// In this folder, which is made where it does not exist. Whoever can write to it can change what
    /// the model answers.
    Dir(PathBuf),
}

impl PackCache {
    /// The folder to use for weights of `bytes` bytes.
    pub(crate) fn folder(&self, bytes: u64) -> Option<PathBuf> {
        match self {
            PackCache::Off => None,
            PackCache::Default => pack::default_folder().filter(|_| bytes >= WORTH_KEEPING),
            PackCache::Dir(folder) => Some(folder.clone()),
        }
    }
}

impl PackCache {
    /// The folder for compiled kernels.
    pub(crate) fn kernels(&self) -> Option<PathBuf> {
        match self {
            PackCache::Off => None,
            PackCache::Default => Some(pack::default_folder()?.parent()?.join("kernels")),
            PackCache::Dir(folder) => Some(folder.clone()),
        }
    }
}

impl FromStr for PackCache {
    type Err = String;

    /// `off`, `default`, or a folder.
    fn from_str(text: &str) -> Result<PackCache, String> {
        Ok(match text {
            "" => return Err("expected a folder, default or off".into()),
            "off" => PackCache::Off,
            "default" => PackCache::Default,
            folder => PackCache::Dir(folder.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes() {
        assert_eq!("off".parse(), Ok(PackCache::Off));
        assert_eq!("default".parse(), Ok(PackCache::Default));
        assert_eq!("./off".parse(), Ok(PackCache::Dir("./off".into())));
        assert!("".parse::<PackCache>().is_err());
        assert_eq!(PackCache::Off.folder(u64::MAX), None);
        assert_eq!(PackCache::Default.folder(WORTH_KEEPING - 1), None);
        assert_eq!(PackCache::Dir("x".into()).folder(1), Some("x".into()));
    }
}
