//! Finds the archive of compiled kernels that the feature `prebuilt` puts inside.
use std::path::Path;

const MADE_BY: &str =
    "cargo run --release -p anyfleet-kernels --features cubins --bin cubins -- --nvrtc LIBNVRTC.SO --out FILE";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ANYFLEET_CUBINS");
    if std::env::var_os("CARGO_FEATURE_PREBUILT").is_none() {
        return;
    }
    match std::env::var("ANYFLEET_CUBINS") {
        Ok(file) if Path::new(&file).is_absolute() && Path::new(&file).is_file() => {
            println!("cargo::rerun-if-changed={file}");
        }
        _ => println!(
            "cargo::error=ANYFLEET_CUBINS must be the absolute path of an archive of kernels, made by: {MADE_BY}"
        ),
    }
}
