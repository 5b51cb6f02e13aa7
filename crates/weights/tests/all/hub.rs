//! `ORG/NAME` to a directory: the cache as `huggingface_hub` lays it out, and downloads from a mirror
//! on this machine.
use crate::common::{Dir, sound};
use anyfleet_weights::{Hub, ModelDir};
use std::fs;
use std::path::{Path, PathBuf};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hub(cache: &Path, endpoint: &str) -> Hub {
    Hub { cache: Some(cache.to_owned()), endpoint: endpoint.into(), token: None, offline: false }
}

fn offline(cache: &Path) -> Hub {
    Hub { offline: true, ..hub(cache, "http://127.0.0.1:1") }
}

#[track_caller]
fn refused(hub: &Hub, model: &str, parts: &[&str]) {
    let line = hub.resolve(model, &mut |_| {}).expect_err("resolved").to_string();
    assert!(!line.chars().any(char::is_control) && line.len() < 800, "{line:?}");
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
}

/// A snapshot in the cache's layout with these files.
fn cached(files: &[&str]) -> (Dir, PathBuf) {
    let dir = Dir::empty();
    let root = dir.join("models--org--tiny");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::create_dir_all(root.join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    for name in files {
        let blob = root.join("blobs").join(format!("blob-{name}"));
        let bytes = match *name {
            "model.safetensors" => sound(&[("a", &[2], 1.0)]),
            "model.safetensors.index.json" => {
                br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#.to_vec()
            }
            _ => b"{}".to_vec(),
        };
        fs::write(&blob, bytes).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/blob-{name}"), snapshot.join(name)).unwrap();
        #[cfg(not(unix))]
        fs::rename(&blob, snapshot.join(name)).unwrap();
    }
    (dir, snapshot)
}

const WHOLE: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

#[test]
fn a_directory_is_itself() {
    let dir = Dir::new();
    let path = dir.path().to_str().unwrap();
    assert_eq!(offline(dir.path()).resolve(path, &mut |_| {}).unwrap(), dir.path());
}

#[test]
fn names_that_are_no_models() {
    let cache = Dir::empty();
    for name in
        ["", "gpt2", "/no/such/dir", "./gone", "../a/b", "a/b/c", "a/..", "../b", "a/b@../c", "a/b@", "a b/c", "a/b\n"]
    {
        refused(&hub(cache.path(), "http://127.0.0.1:1"), name, &["neither a directory nor", "ORG/NAME"]);
    }
}

#[test]
fn from_the_cache() {
    let (cache, snapshot) = cached(&WHOLE);
    let hub = offline(cache.path());
    for name in ["org/tiny", "org/tiny@main", &format!("org/tiny@{COMMIT}")] {
        let found = hub.resolve(name, &mut |_| {}).unwrap();
        assert_eq!(found, snapshot, "{name}");
        assert!(ModelDir::open(&found).unwrap().contains("a"));
    }
    refused(&hub, "org/tiny@v2", &["does not have it", "HF_HUB_OFFLINE"]);
    refused(&hub, "org/other", &["org/other", "does not have it", "HF_HUB_OFFLINE"]);
    fs::write(cache.join("models--org--tiny/refs/main"), "../../../../etc").unwrap();
    refused(&hub, "org/tiny", &["does not have it"]);
}

#[test]
fn incomplete_snapshots() {
    let (cache, _) = cached(&["config.json", "tokenizer.json"]);
    refused(&offline(cache.path()), "org/tiny", &["without model.safetensors", "HF_HUB_OFFLINE"]);
    let (cache, _) = cached(&["config.json", "tokenizer.json", "model.safetensors.index.json", "one.safetensors"]);
    refused(&offline(cache.path()), "org/tiny", &["without two.safetensors"]);
    let (cache, snapshot) = cached(&WHOLE[..2]);
    let found = offline(cache.path()).resolve("org/tiny", &mut |_| {}).unwrap();
    assert_eq!(found, snapshot, "a missing tokenizer is for the tokenizer's loader to report");
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature() {
    let cache = Dir::empty();
    refused(&hub(cache.path(), "http://127.0.0.1:1"), "org/tiny", &["cargo feature hub", "hf download org/tiny"]);
}

#[cfg(feature = "hub")]
mod mirror {
    use super::*;
    use anyfleet_weights::Progress;
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    /// How the mirror misbehaves.
    #[derive(Clone, Copy, Default)]
    struct Manners {
        /// Body bytes after which a weights connection breaks.
        break_after: Option<usize>,
        /// Breaks again and again without getting further.
        stuck: bool,
        ranges: bool,
        /// Weights are redirected to another port, as to the hub's storage.
        redirect: bool,
        /// Every file is redirected within the hub first.
        relative: bool,
        plain: bool,
        status: Option<(u16, &'static str)>,
        token: Option<&'static str>,
        wrong_hash: bool,
        evil_etag: bool,
        moving: bool,
    }

    struct Mirror {
        endpoint: String,
        /// Request lines, with the port's letter and the range asked for.
        log: Arc<Mutex<Vec<String>>>,
    }

    impl Mirror {
        fn start(files: &[(&str, Vec<u8>)], manners: Manners) -> Self {
            let files: HashMap<String, Vec<u8>> =
                files.iter().map(|(n, b)| (format!("/org/tiny/resolve/main/{n}"), b.clone())).collect();
            let files = Arc::new(files);
            let log = Arc::new(Mutex::new(Vec::new()));
            let (hub, storage) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
            let endpoint = format!("http://{}", hub.local_addr().unwrap());
            let storage_url = format!("http://{}", storage.local_addr().unwrap());
            for (letter, listener) in [('H', hub), ('S', storage)] {
                let (files, log, storage_url) = (files.clone(), log.clone(), storage_url.clone());
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let server = Server { letter, manners, files: &files, log: &log, storage_url: &storage_url };
                        // A client that hangs up early is part of the tests.
                        let _ = server.answer(stream);
                    }
                });
            }
            Mirror { endpoint, log }
        }

        fn requests(&self) -> Vec<String> {
            self.log.lock().unwrap().clone()
        }
    }

    struct Server<'a> {
        letter: char,
        manners: Manners,
        files: &'a HashMap<String, Vec<u8>>,
        log: &'a Mutex<Vec<String>>,
        storage_url: &'a str,
    }

    impl Server<'_> {
        fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
            let (mut path, mut from, mut authorization) = (String::new(), 0usize, String::new());
            for line in BufReader::new(stream.try_clone()?).lines() {
                let line = line?;
                if let Some(rest) = line.strip_prefix("GET ") {
                    path = rest.split(' ').next().unwrap_or_default().to_owned();
                }
                match line.to_ascii_lowercase().split_once(": ") {
                    Some(("range", range)) => {
                        from = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
                    }
                    Some(("authorization", _)) => line[15..].clone_into(&mut authorization),
                    _ => {}
                }
                if line.is_empty() {
                    break;
                }
            }
            let file = path.rsplit('/').next().unwrap_or_default().to_owned();
            let file = file.as_str();
            let count = {
                let mut log = self.log.lock().unwrap();
                log.push(format!("{} {file} {from} {authorization}", self.letter).trim_end().to_owned());
                log.len()
            };
            if self.letter == 'H' {
                if let Some((status, headers)) = self.manners.status {
                    return write!(
                        stream,
                        "HTTP/1.1 {status} No\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n"
                    );
                }
                if self.manners.token.is_some_and(|t| authorization != format!("Bearer {t}")) {
                    return write!(stream, "HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                }
            }
            if self.letter == 'H' && self.manners.relative {
                let Some(inner) = path.strip_prefix("/cache") else {
                    let head = format!("HTTP/1.1 307 Moved\r\nlocation: /cache{path}\r\n");
                    return write!(stream, "{head}content-length: 0\r\nconnection: close\r\n\r\n");
                };
                path = inner.to_owned();
            }
            let Some(bytes) = self.files.get(&path) else {
                let headers = "x-error-code: EntryNotFound\r\ncontent-length: 9\r\nconnection: close\r\n\r\n";
                return write!(stream, "HTTP/1.1 404 Not Found\r\n{headers}not found");
            };
            let weights = path.ends_with(".safetensors");
            let meta = self.meta(file, bytes, weights, count);
            if weights && self.manners.redirect && self.letter == 'H' {
                let location = format!("location: {}{path}\r\n", self.storage_url);
                return write!(
                    stream,
                    "HTTP/1.1 302 Found\r\n{meta}{location}content-length: 0\r\nconnection: close\r\n\r\n"
                );
            }
            self.send(&mut stream, &meta, bytes, if self.manners.ranges { from } else { 0 }, weights)
        }

        /// The hub's headers for a file.
        fn meta(&self, file: &str, bytes: &[u8], weights: bool, count: usize) -> String {
            use sha2::{Digest, Sha256};
            if self.manners.plain || self.letter == 'S' {
                return String::new();
            }
            let commit = if self.manners.moving { format!("{count:040x}") } else { COMMIT.into() };
            if !weights {
                let etag = if self.manners.evil_etag { "../../../../evil".into() } else { format!("etag-{file}") };
                return format!("x-repo-commit: {commit}\r\netag: W/\"{etag}\"\r\n");
            }
            let mut hash = Sha256::digest(bytes);
            hash[0] ^= u8::from(self.manners.wrong_hash);
            let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            format!("x-repo-commit: {commit}\r\nx-linked-etag: \"{hash}\"\r\nx-linked-size: {}\r\n", bytes.len())
        }

        fn send(
            &self,
            stream: &mut TcpStream,
            meta: &str,
            bytes: &[u8],
            from: usize,
            weights: bool,
        ) -> std::io::Result<()> {
            let body = &bytes[from.min(bytes.len())..];
            if from > 0 {
                let end = bytes.len() - 1;
                write!(stream, "HTTP/1.1 206 Partial\r\ncontent-range: bytes {from}-{end}/{}\r\n", bytes.len())?;
            } else {
                write!(stream, "HTTP/1.1 200 OK\r\n")?;
            }
            write!(stream, "{meta}content-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
            let most = match self.manners.break_after.filter(|_| weights) {
                Some(_) if self.manners.stuck && from > 0 => 0,
                Some(most) => most,
                None => body.len(),
            };
            stream.write_all(&body[..body.len().min(most)])
        }
    }

    fn weights() -> Vec<u8> {
        sound(&[("a", &[1000], 1.0)])
    }

    fn files() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("config.json", b"{}".to_vec()),
            ("generation_config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors", weights()),
        ]
    }

    fn polite() -> Manners {
        Manners { ranges: true, redirect: true, ..Manners::default() }
    }

    #[track_caller]
    fn arrives(manners: Manners) -> (Dir, Mirror) {
        let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), manners));
        let hub = Hub { token: manners.token.map(str::to_owned), ..hub(cache.path(), &mirror.endpoint) };
        let path = hub.resolve("org/tiny", &mut |_| {}).unwrap();
        assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
        assert_eq!(ModelDir::open(&path).unwrap().tensors().count(), 1);
        let left = fs::read_dir(cache.join("models--org--tiny/blobs")).unwrap().flatten();
        assert!(left.map(|f| f.file_name()).all(|n| !n.to_string_lossy().ends_with(".incomplete")));
        (cache, mirror)
    }

    #[test]
    fn downloads_once() {
        let (cache, mirror) = arrives(polite());
        let root = cache.join("models--org--tiny");
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        let link = fs::read_link(root.join("snapshots").join(COMMIT).join("config.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs/etag-config.json"));
        let asked = mirror.requests().len();
        let path = hub(cache.path(), &mirror.endpoint).resolve("org/tiny", &mut |_| {}).unwrap();
        assert!(path.ends_with(COMMIT));
        assert_eq!(mirror.requests().len(), asked, "the second time comes from the cache");
    }

    #[test]
    fn shards_and_progress() {
        let index = br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#.to_vec();
        let files = [
            ("config.json", b"{}".to_vec()),
            ("model.safetensors.index.json", index),
            ("one.safetensors", sound(&[("a", &[700], 1.0)])),
            ("two.safetensors", sound(&[("b", &[2], 1.0)])),
        ];
        let (cache, mirror) = (Dir::empty(), Mirror::start(&files, polite()));
        let mut last = HashMap::new();
        let mut watch = |p: Progress<'_>| {
            last.insert(p.file.to_owned(), (p.done, p.total));
        };
        let path = hub(cache.path(), &mirror.endpoint).resolve("org/tiny", &mut watch).unwrap();
        assert_eq!(ModelDir::open(&path).unwrap().tensors().count(), 2);
        let size = files[2].1.len() as u64;
        assert_eq!(last["one.safetensors"], (size, Some(size)));
        assert!(!path.join("model.safetensors").exists());
    }

    #[test]
    fn mirrors_without_the_hubs_headers() {
        let (cache, _) = arrives(Manners { plain: true, ..Manners::default() });
        assert!(cache.join("models--org--tiny/snapshots/main/config.json").exists());
    }

    #[test]
    fn redirects_within_the_hub() {
        let (cache, mirror) = arrives(Manners { relative: true, token: Some("secret"), ..polite() });
        assert!(cache.join("models--org--tiny/snapshots").join(COMMIT).join("config.json").exists());
        assert!(mirror.requests().contains(&"S model.safetensors 0".to_owned()));
    }

    #[test]
    fn broken_connections_resume() {
        for redirect in [false, true] {
            let (_, mirror) = arrives(Manners { break_after: Some(1500), redirect, ..polite() });
            let log = mirror.requests().join("\n");
            assert!(log.contains("model.safetensors 1500") && log.contains("model.safetensors 3000"), "{log}");
        }
    }

    #[test]
    fn truncated_bodies_are_refused() {
        for manners in [
            Manners { break_after: Some(1500), ..Manners::default() },
            Manners { break_after: Some(1500), stuck: true, ..polite() },
            Manners { break_after: Some(0), ..polite() },
        ] {
            let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), manners));
            refused(&hub(cache.path(), &mirror.endpoint), "org/tiny", &["model.safetensors broke off at", "try again"]);
            assert!(!cache.join("models--org--tiny/refs/main").exists());
            refused(&offline(cache.path()), "org/tiny", &["does not have it"]);
        }
    }

    #[test]
    fn a_later_run_resumes() {
        let stuck = Manners { break_after: Some(1500), stuck: true, ..polite() };
        let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), stuck));
        refused(&hub(cache.path(), &mirror.endpoint), "org/tiny", &["broke off at 1500 of"]);
        let mirror = Mirror::start(&files(), polite());
        let path = hub(cache.path(), &mirror.endpoint).resolve("org/tiny", &mut |_| {}).unwrap();
        assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
        assert!(mirror.requests().contains(&"S model.safetensors 1500".to_owned()), "{:?}", mirror.requests());
    }

    #[test]
    fn the_token_stays_with_the_endpoint() {
        let (_, mirror) = arrives(Manners { token: Some("secret"), ..polite() });
        let log = mirror.requests();
        assert!(log.contains(&"H model.safetensors 0 Bearer secret".to_owned()), "{log:?}");
        assert!(log.contains(&"S model.safetensors 0".to_owned()), "{log:?}");
        let debug = format!("{:?}", Hub { token: Some("secret".into()), ..offline(Path::new("x")) });
        assert!(!debug.contains("secret"));
    }

    #[test]
    fn refusals() {
        let gated = "x-error-code: GatedRepo\r\nx-error-message: Access is restricted\r\n";
        let unknown = "x-error-code: RepoNotFound\r\n";
        for (status, headers, words) in [
            (401, "", &["401", "HF_TOKEN"][..]),
            (403, gated, &["403", "(Access is restricted)", "HF_TOKEN"]),
            (404, "", &["no config.json at revision main", "check the name"]),
            (404, unknown, &["404", "check the name"]),
            (429, "", &["429", "wait"]),
            (500, "", &["500", "try again"]),
            (302, "", &["redirects to no valid address"]),
            (302, "location: file:///etc/passwd\r\n", &["redirects to no valid address"]),
            (302, "location: /org/tiny/resolve/main/config.json\r\n", &["in circles"]),
        ] {
            let manners = Manners { status: Some((status, headers)), ..polite() };
            let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), manners));
            refused(&hub(cache.path(), &mirror.endpoint), "org/tiny", words);
        }
        let manners = Manners { token: Some("secret"), ..polite() };
        let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), manners));
        refused(&hub(cache.path(), &mirror.endpoint), "org/tiny", &["401"]);
    }

    #[test]
    fn no_server() {
        let cache = Dir::empty();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        refused(&hub(cache.path(), &format!("http://{port}")), "org/tiny", &["cannot be fetched", "HF_ENDPOINT"]);
        for endpoint in ["", "127.0.0.1", "ftp://127.0.0.1", "http://", "not a url"] {
            refused(&hub(cache.path(), endpoint), "org/tiny", &["HF_ENDPOINT is"]);
        }
    }

    #[test]
    fn servers_that_lie() {
        for (manners, words) in [
            (Manners { wrong_hash: true, ..polite() }, "arrived damaged"),
            (Manners { moving: true, ..polite() }, "changed on the hub"),
        ] {
            let (cache, mirror) = (Dir::empty(), Mirror::start(&files(), manners));
            refused(&hub(cache.path(), &mirror.endpoint), "org/tiny", &[words, "try again"]);
        }
        let outer = Dir::empty();
        let cache = outer.join("a/b/c");
        let mirror = Mirror::start(&files(), Manners { evil_etag: true, ..polite() });
        let path = hub(&cache, &mirror.endpoint).resolve("org/tiny", &mut |_| {}).unwrap();
        assert_eq!(fs::read(path.join("config.json")).unwrap(), b"{}");
        assert!(fs::read_dir(outer.path()).unwrap().flatten().all(|e| e.file_name() == "a"), "nothing outside");
    }

    #[test]
    fn models_without_safetensors() {
        let (cache, mirror) = (Dir::empty(), Mirror::start(&files()[..3], polite()));
        refused(
            &hub(cache.path(), &mirror.endpoint),
            "org/tiny",
            &["neither model.safetensors nor", "safetensors only"],
        );
    }

    #[test]
    fn a_cache_that_cannot_be_written() {
        let dir = Dir::new();
        let mirror = Mirror::start(&files(), polite());
        refused(&hub(&dir.join("config.json"), &mirror.endpoint), "org/tiny", &["cannot be written", "HF_HOME"]);
    }
}
