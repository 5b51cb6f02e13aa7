//! What a test does on a machine that lacks a backend.

/// Says loudly on stderr that `backend` was not tested and why. For tests: `ANYFLEET_REQUIRE`, a list of backends
/// (`cpu,wgpu`), makes it a failure.
///
/// # Panics
/// Where `ANYFLEET_REQUIRE` lists `backend`.
pub fn skipped(backend: &str, reason: impl std::fmt::Display) {
    let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == backend), "ANYFLEET_REQUIRE={required}: {reason}");
    eprintln!("SKIPPED on {backend}: {reason} (ANYFLEET_REQUIRE={backend} makes this a failure)");
}
