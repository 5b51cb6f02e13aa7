//! Embedding in ten lines: load a model directory, print a continuation as it is generated.
//!
//! ```text
//! cargo run --release -p anyfleet-examples --bin generate -- path/to/model "Once upon a time"
//! ```
use anyfleet::{Engine, GenerateRequest, StreamEvent};
use std::io::Write;

fn main() -> anyfleet::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(prompt)) = (args.next(), args.next()) else {
        eprintln!("usage: generate MODEL PROMPT");
        std::process::exit(2);
    };
    let engine = Engine::builder(model).build()?;
    for event in engine.stream(GenerateRequest::text(prompt).max_tokens(100).temperature(0.0))? {
        if let StreamEvent::Delta { text, .. } = event? {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
    }
    println!();
    Ok(())
}
