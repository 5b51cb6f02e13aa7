//! A really trained model tells the story that two independent implementations told.
mod common;

use anyfleet::{DTypeSpec, DeviceSpec, Engine, GenerateRequest};
use common::{Driver, devices, shared_data};
use std::path::Path;

#[derive(serde::Deserialize)]
struct Story {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    first_logits_first8: Vec<f64>,
    last_logits_first8: Vec<f64>,
}

#[test]
fn stories260k_tells_its_story() {
    let Some(data) = shared_data("stories260k_tells_its_story") else { return };
    devices().into_iter().for_each(|device| tells_its_story(&data.join("stories260K/hf"), device));
}

fn tells_its_story(dir: &Path, device: DeviceSpec) {
    let text = std::fs::read_to_string(dir.join("expected_greedy.json")).expect("expected_greedy.json");
    let story: Story = serde_json::from_str(&text).expect("json");
    let builder = Engine::builder(dir.to_string_lossy()).device(device).dtype(DTypeSpec::F32);

    let generated = &story.ids[story.prompt_ids.len()..];
    let engine = builder.clone().build().expect("engine");
    let request = GenerateRequest::tokens(story.prompt_ids.clone()).max_tokens(generated.len() as u32).temperature(0.0);
    assert_eq!(engine.generate(request).expect("story").token_ids(), generated);
    // An empty text prompt is the beginning-of-sequence token that the post-processor adds.
    let request = GenerateRequest::text("").max_tokens(generated.len() as u32).temperature(0.0);
    assert_eq!(engine.generate(request).expect("story").token_ids(), generated);

    let mut executor = builder.executor().expect("executor");
    let last = story.ids.len() - 2;
    let (_, logits) = Driver { executor: &mut *executor, chunk: 64 }.score(&story.ids[..=last], &[0, last]);
    for (found, want) in [(&logits[0], &story.first_logits_first8), (&logits[1], &story.last_logits_first8)] {
        for (found, want) in found.iter().zip(want) {
            assert!((f64::from(*found) - want).abs() < 1e-3, "logit {found} instead of {want}");
        }
    }
}
