//! Chat templates: a conversation to the text that the model was trained on.

mod builtins;
mod guard;
mod methods;
mod python;
mod time;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, one_line};
use crate::file::Files;
use crate::tokenizer::SpecialTokens;

/// Published templates reach 20 KB, tokenizer_config.json with its tokens 200 KB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Instructions of one rendering. A message costs some hundred; a few templates look at all other
/// messages for each, so long conversations get more.
const MAX_STEPS: u64 = 2_000_000;
const STEPS_PER_PAIR: u64 = 10;
const MAX_STEPS_EVER: u64 = 50_000_000;
/// The engine parses, frees, prints and compares what nests by recursion. Only the pages of a stack that
/// are touched take memory.
const STACK: usize = 128 << 20;
/// More of it for every tag that is parsed, each of which may begin a block within the one before.
const STACK_PER_TAG: usize = 12 << 10;

/// A chat template, compiled once and rendered for every request.
///
/// The environment is transformers' (`_compile_jinja_template`): `trim_blocks`, `lstrip_blocks`, loop
/// controls, `raise_exception`, `strftime_now`, its `tojson`, `{% generation %}`, Python's methods on
/// strings and mappings, nothing that changes a value in place. Steps, output, memory and time of a
/// rendering are limited.
///
/// ```
/// use anyfleet_text::{ChatInput, ChatTemplate, SpecialTokens};
///
/// # fn main() -> anyfleet_text::Result<()> {
/// let template = ChatTemplate::new(
///     "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
/// )?;
/// let messages = serde_json::json!([{"role": "user", "content": " Hi "}]);
/// let tokens = SpecialTokens::new([("eos_token", "</s>")]);
/// assert_eq!(template.render(&ChatInput::new(&messages), &tokens)?, "<user>Hi</s>");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    default: Arc<Environment<'static>>,
    /// The template for requests with tools, where the model has one of its own.
    tool_use: Option<Arc<Environment<'static>>>,
    clock: Clock,
    /// Over the sources.
    hash: Sha256,
}

/// Seconds since 1970-01-01T00:00:00Z.
type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What a template renders.
#[derive(Debug, Clone)]
pub struct ChatInput<'a> {
    /// The conversation: a list of objects with `role`, `content` and whatever else the template reads.
    pub messages: &'a Json,
    /// The tools on offer: a list of JSON schemas in OpenAI's form.
    pub tools: Option<&'a Json>,
    /// Documents for retrieval: a list of objects with `title` and `text`.
    pub documents: Option<&'a Json>,
    /// Leaves `tools` and `documents` undefined where there are none. transformers passes Python's `None`
    /// then, and templates are written for that; other renderers leave them out.
    pub leave_undefined: bool,
    /// Whether to end with the header of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Further variables (`chat_template_kwargs`: `enable_thinking` and the like). They do not replace the
    /// fields above.
    pub extra: Option<&'a Map<String, Json>>,
}

impl<'a> ChatInput<'a> {
    /// A conversation without tools or documents, to be continued by the assistant.
    pub fn new(messages: &'a Json) -> Self {
        Self {
            messages,
            tools: None,
            documents: None,
            leave_undefined: false,
            add_generation_prompt: true,
            extra: None,
        }
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line of the mistake.
    pub fn new(source: &str) -> Result<Self> {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |d| d.as_secs() as i64)
        };
        Ok(Self {
            default: Arc::new(compile(source)?),
            tool_use: None,
            clock: Arc::new(clock),
            hash: Sha256::new_with_prefix(source),
        })
    }

    /// The template of a model directory: `chat_template.jinja`, else `chat_template` of
    /// `chat_template.json` or of `tokenizer_config.json` (a string, or a list of named templates of which
    /// `default` and `tool_use` are used). `None` where the model has none.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Template`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        Self::from_files(Files::Dir(dir.as_ref()))
    }

    /// As [`from_dir`](Self::from_dir), wherever the files are.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_files(files: Files<'_>) -> Result<Option<Self>> {
        const NAME: &str = "chat_template.jinja";
        if let Some(bytes) = files.read_optional(NAME, MAX_TEMPLATE_BYTES as u64)? {
            let path = files.path(NAME);
            let source = std::str::from_utf8(&bytes)
                .map_err(|_| Error::File { path: path.clone(), reason: "is not UTF-8".into() })?;
            return Self::new(source).map(Some).map_err(|e| in_file(&path, e));
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let Some(config) = files.read_json(name, MAX_CONFIG_BYTES)? else { continue };
            let found = Self::from_json(&config["chat_template"]);
            if let Some(found) = found.map_err(|e| in_file(&files.path(name), e))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The `chat_template` field of a configuration file.
    fn from_json(field: &Json) -> Result<Option<Self>> {
        let named = |wanted: &str| match field {
            Json::Array(list) => list.iter().find(|t| t["name"] == wanted).and_then(|t| t["template"].as_str()),
            Json::Object(map) => map.get(wanted).and_then(Json::as_str),
            _ => None,
        };
        let first = || field.as_array().and_then(|list| list.first()?["template"].as_str());
        let default = match field {
            Json::Null => return Ok(None),
            Json::String(source) => Some(source.as_str()),
            _ => named("default").or_else(first),
        };
        let source = default.ok_or_else(|| Error::Template("chat_template holds no template".into()))?;
        let mut template = Self::new(source)?;
        if let Some(source) = named("tool_use") {
            template.tool_use = Some(Arc::new(compile(source)?));
            template.hash.update(b"\0tool_use\0");
            template.hash.update(source);
        }
        Ok(Some(template))
    }

    /// SHA-256 of what is compiled: equal for equal templates, wherever they stood.
    pub fn content_hash(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// The same template with another clock for `strftime_now`, in seconds since 1970-01-01T00:00:00Z.
    pub fn with_clock(mut self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Renders a conversation. The text holds its special tokens, so it is encoded with
    /// `add_special = false`.
    ///
    /// # Errors
    /// [`Error::Template`] where the template raises an exception or fails, [`Error::TemplateLimit`] where
    /// it would not end.
    pub fn render(&self, input: &ChatInput<'_>, tokens: &SpecialTokens) -> Result<String> {
        let has_tools = input.tools.is_some_and(|t| t.as_array().is_some_and(|l| !l.is_empty()));
        let env = match &self.tool_use {
            Some(env) if has_tools => env.clone(),
            _ => self.default.clone(),
        };
        let context = self.context(input, tokens);
        let messages = input.messages.as_array().map_or(0, Vec::len) as u64;
        let steps = (MAX_STEPS + STEPS_PER_PAIR.saturating_mul(messages.saturating_pow(2))).min(MAX_STEPS_EVER);
        // A rendering ends itself in time, unless one step of it takes very long.
        in_thread(STACK, Some(2 * python::MAX_TIME), move || {
            python::open_account();
            let mut env = Environment::clone(&env);
            env.set_fuel(Some(steps));
            run(&env, context)
        })
    }

    fn context(&self, input: &ChatInput<'_>, tokens: &SpecialTokens) -> Value {
        let mut pairs: Vec<(String, Value)> = Vec::new();
        pairs.extend(tokens.as_map().iter().map(|(k, v)| (k.clone(), value(v))));
        pairs.extend(input.extra.into_iter().flatten().map(|(k, v)| (k.clone(), value(v))));
        pairs.push(("messages".into(), value(input.messages)));
        for (name, json) in [("tools", input.tools), ("documents", input.documents)] {
            if json.is_some() || !input.leave_undefined {
                pairs.push((name.into(), json.map_or(Value::from(()), value)));
            }
        }
        pairs.push(("add_generation_prompt".into(), input.add_generation_prompt.into()));
        let clock = self.clock.clone();
        let now = Value::from_function(move |format: &str| {
            // The longest directive, `%c`, makes twelve bytes of each of its own.
            python::charge(format.len().saturating_mul(12)).map(|()| time::strftime(format, clock()))
        });
        pairs.push(("strftime_now".into(), now));
        Value::from_pairs(pairs)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("tool_use", &self.tool_use.is_some()).finish_non_exhaustive()
    }
}

const NAME: &str = "chat template";

/// Runs `work` on a thread with a stack of so many bytes, for as long as `limit` says. A thread that runs
/// out of time goes on alone: it cannot be stopped, only left.
fn in_thread<T: Send + 'static>(
    stack: usize,
    limit: Option<Duration>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (send, receive) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(stack);
    // The receiver is gone when the time ran out; nobody wants the result then.
    thread.spawn(move || drop(send.send(work()))).map_err(|e| {
        let reason = format!("needs a thread with a stack of {} MiB, which cannot be started: {e}", stack >> 20);
        Error::Template(format!("{reason}; raise the limit of address space or of threads"))
    })?;
    let received = match limit {
        Some(limit) => receive.recv_timeout(limit),
        None => receive.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
    };
    received.unwrap_or_else(|e| match (e, limit) {
        (mpsc::RecvTimeoutError::Timeout, Some(limit)) => {
            Err(Error::TemplateLimit(format!("did not end within {} s", limit.as_secs())))
        }
        _ => Err(Error::Template("the thread that runs it died".into())),
    })
}

fn compile(source: &str) -> Result<Environment<'static>> {
    if source.len() > MAX_TEMPLATE_BYTES {
        return Err(Error::Template(format!("is {} bytes long, the limit is {MAX_TEMPLATE_BYTES}", source.len())));
    }
    let source = source.to_owned();
    in_thread(STACK + source.matches("{%").count() * STACK_PER_TAG, None, move || compile_here(&source))
}

fn compile_here(source: &str) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(describe)?);
    env.set_debug(false);
    env.set_recursion_limit(200);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, _, value| {
        let text = python::to_str(value)?;
        out.write_str(&text).map_err(|_| minijinja::Error::new(ErrorKind::OutOfFuel, "output is full"))
    });
    builtins::register(&mut env);
    let source = guard::rewrite(source).map_err(Error::Template)?;
    env.add_template_owned(NAME, source).map_err(describe)?;
    Ok(env)
}

fn run(env: &Environment<'_>, context: Value) -> Result<String> {
    let mut out = Output(Vec::new());
    let template = env.get_template(NAME).map_err(describe)?;
    let result = template.render_captured_to(context, &mut out).map(drop);
    if out.0.len() > python::MAX_TEXT {
        return Err(Error::TemplateLimit(format!("writes more than {} MiB", python::MAX_TEXT >> 20)));
    }
    result.map_err(describe)?;
    String::from_utf8(out.0).map_err(|_| Error::Template("wrote bytes that are no text".into()))
}

/// The output, refusing to grow past the limit.
struct Output(Vec<u8>);

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > python::MAX_TEXT { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The engine's error as one line, with the line of the template.
fn describe(error: minijinja::Error) -> Error {
    let mut source: &dyn std::error::Error = &error;
    let mut limit = error.kind() == ErrorKind::OutOfFuel;
    while let Some(next) = source.source() {
        source = next;
        limit |= source.downcast_ref::<minijinja::Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel);
    }
    let detail = match error.detail() {
        Some(detail) => detail.to_owned(),
        None if error.kind() == ErrorKind::OutOfFuel => "takes too many steps".to_owned(),
        None => error.kind().to_string(),
    };
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    let message = one_line(format!("{detail}{line}"));
    if limit { Error::TemplateLimit(message) } else { Error::Template(message) }
}

fn in_file(path: &Path, error: Error) -> Error {
    Error::File { path: path.to_owned(), reason: error.to_string() }
}

/// A JSON value as the engine's, keys in order.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => ().into(),
        Json::Bool(b) => (*b).into(),
        Json::Number(n) => {
            let int = n.as_i64().map(Value::from).or_else(|| n.as_u64().map(Value::from));
            int.unwrap_or_else(|| n.as_f64().unwrap_or(f64::NAN).into())
        }
        Json::String(s) => s.as_str().into(),
        Json::Array(list) => list.iter().map(value).collect::<Vec<_>>().into(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v)))),
    }
}
