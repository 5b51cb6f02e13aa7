//! What a test does on a machine that lacks a backend.

/// Whether a slow machine asks for less: `ANYFLEET_BRIEF`, which `.ci/run` sets on one. Software Vulkan then runs a share of
/// what it runs otherwise.
pub fn brief() -> bool {
    std::env::var_os("ANYFLEET_BRIEF").is_some()
}

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
