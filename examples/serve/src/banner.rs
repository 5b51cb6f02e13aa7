//! What `serve` says of itself on standard output.
use anyfleet::{Engine, MemoryPlan};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;

/// Writes to standard output at once; a script may be waiting for the address.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The devices of this machine.
pub(crate) fn devices() -> String {
    let mut text = String::new();
    for device in anyfleet::list_devices() {
        let name = device.spec.to_string();
        let mut details = vec![match &device.unavailable {
            Some(reason) => format!("not usable: {reason}"),
            None => device.name,
        }];
        details.extend(device.memory_available.map(|n| format!("{:.1} GiB free", n as f64 / f64::from(1 << 30))));
        details.extend(device.features.into_iter().map(str::to_owned));
        let detail = details.join(", ");
        let _ = writeln!(text, "{name:<8} {detail}");
    }
    text
}

/// The memory plan, before a weight is read.
pub(crate) fn plan(plan: &MemoryPlan) -> String {
    format!("anyfleet {}\n{plan}", env!("CARGO_PKG_VERSION"))
}

/// Everything else, once requests are answered.
pub(crate) fn ready(engine: &Engine, names: &[String], address: SocketAddr, with_key: bool) -> String {
    let info = engine.info();
    let name = names.first().map_or("", String::as_str);
    let origin = info.path.as_ref().map_or("bundled".to_owned(), |path| path.display().to_string());
    let mut text = String::new();
    for warning in &info.warnings {
        let _ = writeln!(text, "note: {warning}");
    }
    for (label, value) in [
        ("model", format!("{name} ({}, {origin})", info.family)),
        ("device", info.device.clone()),
        ("dtype", info.dtype.clone()),
        ("numerics", info.identity.numerics_id.clone()),
        ("context", format!("{} tokens", info.max_model_len)),
        ("listening", format!("http://{address}")),
    ] {
        let _ = writeln!(text, "{label:<10} {value}");
    }
    if !address.ip().is_loopback() && !with_key {
        let _ = writeln!(text, "note: anyone who reaches this address can use the model; --api-key asks for a key");
    }
    let _ = writeln!(text, "try        {}", curl(name, engine.chat_template().is_some(), address, with_key));
    text
}

/// A command that works from a shell on this machine.
fn curl(name: &str, chat: bool, mut address: SocketAddr, with_key: bool) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let model = serde_json::Value::from(name);
    let (path, rest) = match chat {
        true => (
            "chat/completions",
            r#""messages":[{"role":"user","content":"What is the opposite of hot?"}],"max_tokens":32,"temperature":0"#,
        ),
        false => ("completions", r#""prompt":"Once upon a time","max_tokens":64"#),
    };
    let key = if with_key { " -H \"Authorization: Bearer $ANYFLEET_API_KEY\"" } else { "" };
    // Within single quotes a shell takes everything but a single quote as it is.
    let body = format!("{{\"model\":{model},{rest}}}").replace('\'', r"'\''");
    format!("curl http://{address}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_line_survives_a_shell() {
        let line = curl("it's \"x\"", false, "0.0.0.0:80".parse().unwrap(), true);
        assert!(line.contains("http://127.0.0.1:80/v1/completions -H \"Authorization"), "{line}");
        assert!(line.contains(r#"-d '{"model":"it'\''s \"x\"","prompt""#), "{line}");
        assert!(
            curl("m", true, "[::]:80".parse().unwrap(), false)
                .contains("http://[::1]:80/v1/chat/completions -H 'Content")
        );
    }
}
