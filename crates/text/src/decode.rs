//! The decoder of a `tokenizer.json`, as a machine that takes one token at a time.
//!
//! The `tokenizers` library decodes a whole sequence: a chain of decoders, each from a list of strings
//! to a list of strings, joined at the end. Most of them look at one token at a time; the others need
//! exactly this much memory of the past, which is what the stages here keep:
//!
//! | decoder | state |
//! |---|---|
//! | `Replace`, `Strip` before fusing | none |
//! | `ByteFallback` | the current run of byte tokens: one bad byte turns the whole run into U+FFFD |
//! | `ByteLevel` | at most three bytes of an unfinished character |
//! | `Metaspace`, `WordPiece` | whether a token came before |
//! | `BPEDecoder` | the last token, whose suffix is dropped at the very end |
//! | `CTC` | the last token, for deduplication |
//! | `Strip` after fusing | how many characters may still be stripped |
//!
//! A chain that none of this covers (a regular expression over the fused text, say) is decoded by the
//! library once, at the end of the stream.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::Replace;
use tokenizers::tokenizer::Decoder as _;

/// The decoder chain of a tokenizer, shared by its detokenizers.
#[derive(Debug, Clone)]
pub(crate) struct DecodePlan {
    tokens: Arc<[TokenStage]>,
    join: Join,
    texts: Arc<[TextStage]>,
}

/// How the tokens that leave the token stages become one text.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Join {
    /// End to end.
    Concat,
    /// With a space between two tokens: what the library does without a decoder.
    Spaces,
    /// Through the byte alphabet of GPT-2, invalid bytes becoming U+FFFD.
    Bytes,
}

/// A stage from tokens to tokens.
#[derive(Debug, Clone)]
enum TokenStage {
    Replace { pattern: String, with: String },
    RegexReplace(Arc<Replace>),
    Strip { content: char, start: usize },
    ByteFallback,
    Metaspace { replacement: char, drop_first: bool },
    WordPiece { prefix: String, cleanup: bool },
    Bpe { suffix: String },
    Ctc(Arc<DecoderWrapper>),
}

/// A stage over the fused text.
#[derive(Debug, Clone)]
enum TextStage {
    Replace { pattern: String, with: String },
    Strip { content: char, start: usize },
    Whole(Arc<[DecoderWrapper]>),
}

/// Where a detokenizer is in its chain.
#[derive(Debug, Clone)]
pub(crate) struct DecodeState {
    tokens: Vec<TokenState>,
    /// Whether a token has left the token stages.
    joined: bool,
    /// Bytes of an unfinished character (`Join::Bytes`): at most three.
    partial: Vec<u8>,
    texts: Vec<TextState>,
}

#[derive(Debug, Clone)]
enum TokenState {
    None,
    Run(Vec<u8>),
    Started(bool),
    Last(Option<String>),
}

#[derive(Debug, Clone)]
enum TextState {
    Held(String),
    Strip(usize),
}

impl DecodePlan {
    /// Reads the `decoder` of a validated `tokenizer.json`.
    ///
    /// # Errors
    /// The part that the library itself refuses, in one line.
    pub(crate) fn new(decoder: &Value) -> Result<Self, String> {
        let mut plan = (Vec::new(), Join::Concat, Vec::new());
        if decoder.is_null() {
            plan.1 = Join::Spaces;
        } else {
            let mut list = Vec::new();
            flatten(decoder, &mut list);
            let mut fused = false;
            let mut at = 0;
            while at < list.len() {
                let spec = list[at];
                if fused {
                    match text_stage(spec) {
                        Some(Some(stage)) => plan.2.push(stage),
                        Some(None) => {}
                        None => {
                            let rest: Result<Vec<_>, _> = list[at..].iter().map(|s| library(s)).collect();
                            plan.2.push(TextStage::Whole(rest?.into()));
                            break;
                        }
                    }
                } else {
                    match spec["type"].as_str().unwrap_or_default() {
                        "Fuse" => fused = true,
                        "ByteLevel" => {
                            plan.1 = Join::Bytes;
                            fused = true;
                        }
                        _ => plan.0.push(token_stage(spec)?),
                    }
                }
                at += 1;
            }
        }
        Ok(Self { tokens: plan.0.into(), join: plan.1, texts: plan.2.into() })
    }

    /// The state before the first token.
    pub(crate) fn start(&self) -> DecodeState {
        DecodeState {
            tokens: self
                .tokens
                .iter()
                .map(|s| match s {
                    TokenStage::ByteFallback => TokenState::Run(Vec::new()),
                    TokenStage::Metaspace { .. } | TokenStage::WordPiece { .. } => TokenState::Started(false),
                    TokenStage::Bpe { .. } | TokenStage::Ctc(_) => TokenState::Last(None),
                    _ => TokenState::None,
                })
                .collect(),
            joined: false,
            partial: Vec::new(),
            texts: self
                .texts
                .iter()
                .map(|s| match s {
                    TextStage::Strip { start, .. } => TextState::Strip(*start),
                    _ => TextState::Held(String::new()),
                })
                .collect(),
        }
    }

    /// Takes one token; appends to `out` the text that is now final.
    pub(crate) fn push(&self, state: &mut DecodeState, token: String, out: &mut String) {
        let mut text = String::new();
        self.token(state, 0, token, &mut text);
        self.text(state, &text, out);
    }

    /// Ends the stream; appends to `out` what was held back.
    pub(crate) fn finish(&self, state: &mut DecodeState, out: &mut String) {
        let mut text = String::new();
        for at in 0..self.tokens.len() {
            match (&self.tokens[at], &mut state.tokens[at]) {
                (TokenStage::ByteFallback, TokenState::Run(run)) => {
                    for token in flush_run(run) {
                        self.token(state, at + 1, token, &mut text);
                    }
                }
                (TokenStage::Bpe { suffix }, TokenState::Last(last)) => {
                    if let Some(token) = last.take() {
                        self.token(state, at + 1, token.replace(suffix.as_str(), ""), &mut text);
                    }
                }
                _ => {}
            }
        }
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut state.partial)));
        self.text(state, &text, out);
        self.finish_texts(state, out);
    }

    /// Runs `token` through the token stages from `at` on, and joins what comes out to `text`.
    fn token(&self, state: &mut DecodeState, at: usize, token: String, text: &mut String) {
        let mut token = token;
        for at in at..self.tokens.len() {
            match (&self.tokens[at], &mut state.tokens[at]) {
                (TokenStage::ByteFallback, TokenState::Run(run)) => {
                    if let Some(byte) = fallback_byte(&token) {
                        run.push(byte);
                        return;
                    }
                    for done in flush_run(run) {
                        self.token(state, at + 1, done, text);
                    }
                }
                (TokenStage::Metaspace { .. } | TokenStage::WordPiece { .. }, TokenState::Started(s)) => {
                    let first = !std::mem::replace(s, true);
                    token = self.tokens[at].alone(token, first);
                }
                (TokenStage::Bpe { suffix }, TokenState::Last(last)) => match last.replace(token) {
                    Some(before) => token = before.replace(suffix.as_str(), " "),
                    None => return,
                },
                (TokenStage::Ctc(decoder), TokenState::Last(last)) => {
                    if last.as_ref() == Some(&token) {
                        return;
                    }
                    *last = Some(token.clone());
                    match decoder.decode_chain(vec![token]).ok().and_then(|mut v| v.pop()) {
                        Some(t) => token = t,
                        None => return,
                    }
                }
                (stage, _) => token = stage.alone(token, false),
            }
        }
        self.join(state, &token, text);
    }

    fn join(&self, state: &mut DecodeState, token: &str, text: &mut String) {
        match self.join {
            Join::Concat => text.push_str(token),
            Join::Spaces => {
                if state.joined {
                    text.push(' ');
                }
                text.push_str(token);
            }
            Join::Bytes => {
                state.partial.extend(alphabet_bytes(token));
                take_valid(&mut state.partial, text);
            }
        }
        state.joined = true;
    }

    /// Runs a piece of fused text through the text stages.
    fn text(&self, state: &mut DecodeState, piece: &str, out: &mut String) {
        let mut piece = std::borrow::Cow::Borrowed(piece);
        for (stage, state) in self.texts.iter().zip(&mut state.texts) {
            match (stage, state) {
                (TextStage::Strip { content, .. }, TextState::Strip(left)) => {
                    let mut rest: &str = &piece;
                    while *left > 0 && !rest.is_empty() {
                        match rest.strip_prefix(*content) {
                            Some(r) => {
                                rest = r;
                                *left -= 1;
                            }
                            None => *left = 0,
                        }
                    }
                    piece = rest.to_owned().into();
                }
                (TextStage::Replace { pattern, with }, TextState::Held(held)) => {
                    held.push_str(&piece);
                    piece = replace_ready(held, pattern, with).into();
                }
                (TextStage::Whole(_), TextState::Held(held)) => {
                    held.push_str(&piece);
                    return;
                }
                _ => unreachable!("states are made from their stages"),
            }
        }
        out.push_str(&piece);
    }

    fn finish_texts(&self, state: &mut DecodeState, out: &mut String) {
        let mut carry = String::new();
        for (stage, state) in self.texts.iter().zip(&mut state.texts) {
            match (stage, state) {
                (TextStage::Strip { content, .. }, TextState::Strip(left)) => {
                    while *left > 0 && carry.starts_with(*content) {
                        carry.remove(0);
                        *left -= 1;
                    }
                }
                (TextStage::Replace { pattern, with }, TextState::Held(held)) => {
                    held.push_str(&carry);
                    carry = std::mem::take(held).replace(pattern.as_str(), with);
                }
                (TextStage::Whole(decoders), TextState::Held(held)) => {
                    held.push_str(&carry);
                    let mut tokens = vec![std::mem::take(held)];
                    for d in decoders.iter() {
                        // The library has no failing decoder; an empty list is the honest fallback.
                        tokens = d.decode_chain(tokens).unwrap_or_default();
                    }
                    carry = tokens.concat();
                }
                _ => unreachable!("states are made from their stages"),
            }
        }
        out.push_str(&carry);
    }

    /// The bytes of one token in the middle of a text: what it adds to the text, before any decision
    /// that depends on its neighbours. Not always valid UTF-8.
    pub(crate) fn bytes_of(&self, token: String) -> Vec<u8> {
        let mut token = token;
        for stage in self.tokens.iter() {
            match stage {
                TokenStage::ByteFallback => {
                    if let Some(byte) = fallback_byte(&token) {
                        return vec![byte];
                    }
                }
                TokenStage::Bpe { suffix } => token = token.replace(suffix.as_str(), " "),
                TokenStage::Ctc(_) => {}
                stage => token = stage.alone(token, false),
            }
        }
        match self.join {
            Join::Bytes => alphabet_bytes(&token).collect(),
            _ => token.into_bytes(),
        }
    }
}

impl TokenStage {
    /// The stages that look at one token only (and at whether it is the first).
    fn alone(&self, token: String, first: bool) -> String {
        match self {
            Self::Replace { pattern, with } => token.replace(pattern.as_str(), with),
            Self::RegexReplace(replace) => replace.decode_chain(vec![token]).unwrap_or_default().concat(),
            Self::Strip { content, start } => {
                let mut rest = token.as_str();
                for _ in 0..*start {
                    match rest.strip_prefix(*content) {
                        Some(r) => rest = r,
                        None => break,
                    }
                }
                rest.to_owned()
            }
            Self::Metaspace { replacement, drop_first } => {
                let with = if first && *drop_first { "" } else { " " };
                token.replace(*replacement, with)
            }
            Self::WordPiece { prefix, cleanup } => {
                let token = match token.strip_prefix(prefix.as_str()) {
                    _ if first => token,
                    Some(rest) => rest.to_owned(),
                    None => format!(" {token}"),
                };
                if *cleanup { tokenizers::decoders::wordpiece::cleanup(&token) } else { token }
            }
            Self::ByteFallback | Self::Bpe { .. } | Self::Ctc(_) => token,
        }
    }
}

/// The decoders of nested sequences, in order.
fn flatten<'a>(spec: &'a Value, list: &mut Vec<&'a Value>) {
    match spec["decoders"].as_array() {
        Some(inner) if spec["type"] == "Sequence" => inner.iter().for_each(|d| flatten(d, list)),
        _ => list.push(spec),
    }
}

fn library(spec: &Value) -> Result<DecoderWrapper, String> {
    serde_json::from_value(spec.clone()).map_err(|e| format!("decoder: {e}"))
}

fn string(spec: &Value, field: &str) -> String {
    spec[field].as_str().unwrap_or_default().to_owned()
}

fn token_stage(spec: &Value) -> Result<TokenStage, String> {
    let kind = spec["type"].as_str().unwrap_or_default();
    Ok(match kind {
        "Replace" => match spec["pattern"]["String"].as_str() {
            Some(p) if !p.is_empty() => TokenStage::Replace { pattern: p.to_owned(), with: string(spec, "content") },
            _ => {
                let replace: Replace = serde_json::from_value(spec.clone()).map_err(|e| format!("decoder: {e}"))?;
                TokenStage::RegexReplace(Arc::new(replace))
            }
        },
        "Strip" => TokenStage::Strip { content: character(spec, "content")?, start: count(spec, "start") },
        "ByteFallback" => TokenStage::ByteFallback,
        "Metaspace" => TokenStage::Metaspace {
            replacement: character(spec, "replacement")?,
            drop_first: spec["prepend_scheme"] != "never" && spec["add_prefix_space"] != false,
        },
        "WordPiece" => TokenStage::WordPiece {
            prefix: string(spec, "prefix"),
            cleanup: spec["cleanup"].as_bool().unwrap_or(false),
        },
        "BPEDecoder" => TokenStage::Bpe { suffix: string(spec, "suffix") },
        "CTC" => TokenStage::Ctc(Arc::new(library(spec)?)),
        other => return Err(format!("decoder: unknown type {other:?}")),
    })
}

/// The stage for a decoder after fusing: `Some(None)` when it does nothing to a fused text, `None` when
/// it needs the whole text.
fn text_stage(spec: &Value) -> Option<Option<TextStage>> {
    match spec["type"].as_str()? {
        "Fuse" => Some(None),
        "Strip" => {
            let content = character(spec, "content").ok()?;
            Some(Some(TextStage::Strip { content, start: count(spec, "start") }))
        }
        "Replace" => match spec["pattern"]["String"].as_str() {
            Some(p) if !p.is_empty() => {
                Some(Some(TextStage::Replace { pattern: p.to_owned(), with: string(spec, "content") }))
            }
            _ => None,
        },
        _ => None,
    }
}

fn character(spec: &Value, field: &str) -> Result<char, String> {
    let text = spec[field].as_str().unwrap_or_default();
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(format!("decoder: {field} is {text:?}, it must be one character")),
    }
}

fn count(spec: &Value, field: &str) -> usize {
    spec[field].as_u64().unwrap_or(0).try_into().unwrap_or(usize::MAX)
}

/// The byte of a `<0xE4>` token, read exactly as the library reads it.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A finished run of byte tokens: its text, or one U+FFFD a byte when any of it is invalid.
fn flush_run(run: &mut Vec<u8>) -> Vec<String> {
    if run.is_empty() {
        return Vec::new();
    }
    match String::from_utf8(std::mem::take(run)) {
        Ok(text) => vec![text],
        Err(e) => vec!["\u{FFFD}".to_owned(); e.as_bytes().len()],
    }
}

/// Moves all but an unfinished last character from `bytes` to `text`, invalid bytes as U+FFFD.
fn take_valid(bytes: &mut Vec<u8>, text: &mut String) {
    let mut unfinished = 0;
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                break;
            }
            Err(e) => {
                let (valid, after) = rest.split_at(e.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(bad) = e.error_len() else {
                    unfinished = after.len();
                    break;
                };
                text.push('\u{FFFD}');
                rest = &after[bad..];
            }
        }
    }
    bytes.drain(..bytes.len() - unfinished);
}

/// Replaces every occurrence that can no longer change, leaving in `held` a tail that may begin one.
fn replace_ready(held: &mut String, pattern: &str, with: &str) -> String {
    let mut out = String::new();
    let mut rest = held.as_str();
    while let Some(at) = rest.find(pattern) {
        out.push_str(&rest[..at]);
        out.push_str(with);
        rest = &rest[at + pattern.len()..];
    }
    let keep = (1..pattern.len().min(rest.len() + 1))
        .rev()
        .find(|&n| pattern.is_char_boundary(n) && rest.ends_with(&pattern[..n]))
        .unwrap_or(0);
    let (ready, tail) = rest.split_at(rest.len() - keep);
    out.push_str(ready);
    *held = tail.to_owned();
    out
}

/// The bytes of a token written in the byte alphabet of GPT-2; a token with any other character stands
/// for its own UTF-8.
fn alphabet_bytes(token: &str) -> impl Iterator<Item = u8> + '_ {
    let mapped = token.chars().all(|c| alphabet_byte(c).is_some());
    let (chars, bytes) = if mapped { (token, "") } else { ("", token) };
    chars.chars().filter_map(alphabet_byte).chain(bytes.bytes())
}

/// The inverse of GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, the 68 others for
/// U+0100 to U+0143 in order.
fn alphabet_byte(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),        // 0x00 to 0x20
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8), // 0x7F to 0xA0
        0x143 => Some(0xAD),
        _ => None,
    }
}
