//! The bundled model, whichever it is: an engine without files, the same as one from its directory.
#![cfg(feature = "pocket")]
use anyfleet::{ChatInput, DeviceSpec, Engine, EngineBuilder, GenerateRequest, SamplingParams};
use std::path::Path;

fn small(builder: EngineBuilder) -> EngineBuilder {
    // A machine without a GPU says so of the device that was not named.
    builder.device(DeviceSpec::Cpu).kv_cache_bytes(8 << 20).max_num_seqs(2)
}

fn answer(engine: &Engine) -> String {
    let messages = serde_json::json!([{"role": "user", "content": "Hi"}]);
    let prompt = engine.apply_chat_template(&ChatInput::new(&messages)).expect("a chat template");
    let prompt = engine.encode(&prompt, false).expect("a tokenizer");
    let params = SamplingParams { max_tokens: Some(8), temperature: 0.0, logprobs: Some(1), ..Default::default() };
    format!("{:?}", engine.generate(GenerateRequest::tokens(prompt).params(params)).expect("an answer").choices)
}

#[test]
fn it_is_the_model_of_its_directory() {
    let bundled = small(Engine::bundled()).build().expect("the bundled model");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let opened = small(Engine::builder(folder.to_string_lossy())).build().expect("its directory");
    let (info, other) = (bundled.info(), opened.info());
    assert_eq!((info.model.as_str(), info.path.as_deref()), ("pocket", None));
    assert_eq!(other.path.as_deref(), Some(folder.as_path()));
    assert_eq!(info.warnings, [""; 0]);
    assert_eq!(info.identity, other.identity);
    assert_eq!(info.eos_token_ids, other.eos_token_ids);
    assert!(!info.eos_token_ids.is_empty(), "an answer has an end");
    assert_eq!(bundled.default_params(), opened.default_params());
    assert_eq!(answer(&bundled), answer(&opened));
}

#[test]
fn what_it_takes_is_planned() {
    let plan = small(Engine::bundled()).plan().expect("a plan");
    assert_eq!(plan.to_string(), small(Engine::bundled()).build().expect("an engine").info().plan.to_string());
    let error = small(Engine::bundled()).max_model_len(usize::MAX).build().expect_err("too long").to_string();
    assert!(error.contains("--max-model-len"), "{error}");
}
