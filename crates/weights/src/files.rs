//! Where the files of a model are: in a directory, or in the program itself.
use crate::{Error, Result, file};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// A model that is part of the program: the files of a Hugging Face model directory under their names.
///
/// It is opened with the same checks as a directory, and its weights are borrowed where they lie.
#[derive(Clone, Copy)]
pub struct Bundle {
    /// Name of the model, e.g. `pocket`.
    pub name: &'static str,
    /// Names and contents of the files, e.g. `config.json` and `model.safetensors`.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Bundle {
    /// The contents of a file, where there is one of that name.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(n, _)| *n == name).map(|&(_, bytes)| bytes)
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundled model {}", self.name)
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names and sizes: nobody reads megabytes of weights.
        let files = self.files.iter().map(|(name, bytes)| (name, bytes.len()));
        f.debug_struct("Bundle").field("name", &self.name).field("files", &files.collect::<Vec<_>>()).finish()
    }
}

/// Where the files of a model are. A path is a directory:
///
/// ```
/// use anyfleet_weights::{Bundle, ModelFiles};
/// let bundle = Bundle { name: "tiny", files: &[("config.json", b"{}")] };
/// assert_eq!(ModelFiles::from("models/tiny").to_string(), "models/tiny");
/// assert_eq!(ModelFiles::from(bundle).to_string(), "bundled model tiny");
/// ```
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A directory.
    Dir(PathBuf),
    /// The program.
    Bundle(Bundle),
}

impl<P: AsRef<Path> + ?Sized> From<&P> for ModelFiles {
    fn from(dir: &P) -> Self {
        ModelFiles::Dir(dir.as_ref().to_owned())
    }
}

impl From<PathBuf> for ModelFiles {
    fn from(dir: PathBuf) -> Self {
        ModelFiles::Dir(dir)
    }
}

impl From<Bundle> for ModelFiles {
    fn from(bundle: Bundle) -> Self {
        ModelFiles::Bundle(bundle)
    }
}

impl fmt::Display for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelFiles::Dir(dir) => dir.display().fmt(f),
            ModelFiles::Bundle(bundle) => bundle.fmt(f),
        }
    }
}

impl ModelFiles {
    /// The directory, where it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            ModelFiles::Dir(dir) => Some(dir),
            ModelFiles::Bundle(_) => None,
        }
    }

    /// What messages call all of it; a path to be read only where this is a directory.
    pub(crate) fn root(&self) -> PathBuf {
        match self {
            ModelFiles::Dir(dir) => dir.clone(),
            ModelFiles::Bundle(bundle) => bundle.to_string().into(),
        }
    }

    /// As [`ModelFiles::root`], for one file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// True when something has this name, even if it cannot be read.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            ModelFiles::Dir(dir) => file::present(&dir.join(name)),
            ModelFiles::Bundle(bundle) => bundle.file(name).is_some(),
        }
    }

    /// A whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing, not a regular file or larger.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Cow<'static, [u8]>> {
        match self {
            ModelFiles::Dir(dir) => file::read_limited(&dir.join(name), limit).map(Cow::Owned),
            ModelFiles::Bundle(_) => {
                let bytes = self.bundled(name)?;
                let fits = bytes.len() as u64 <= limit;
                fits.then_some(bytes.into()).ok_or_else(|| file::too_large(&self.path(name), bytes.len() as u64, limit))
            }
        }
    }

    /// The bytes of a file of the program.
    pub(crate) fn bundled(&self, name: &str) -> Result<&'static [u8]> {
        let bytes = match self {
            ModelFiles::Dir(_) => None,
            ModelFiles::Bundle(bundle) => bundle.file(name),
        };
        bytes.ok_or_else(|| Error::file(&self.path(name), "is not part of this program; build it with the whole model"))
    }

    /// The names of all files, sorted, as far as they can be listed.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match self {
            ModelFiles::Dir(dir) => std::fs::read_dir(dir)
                .map(|list| list.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
                .unwrap_or_default(),
            ModelFiles::Bundle(bundle) => bundle.files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        names.sort();
        names
    }
}
