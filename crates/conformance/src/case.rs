//! What a case is, and how one is run.
use crate::expect::{Errors, Expected, Tolerance};
use crate::operand::Snapshot;
use crate::rng::Rng;
use crate::stage::{Placement, Staged};
use anyfleet_tensor::{Backend, Caps, DType, Live, WeightFormat};
use std::fmt::{self, Debug};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Element types of one case; what the support matrix has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types {
    /// Activations; `None` for an op that has f32 logits instead.
    pub activation: Option<DType>,
    /// Packed weight, where the op has one.
    pub weight: Option<WeightFormat>,
    /// KV cache, where the op has one.
    pub kv: Option<DType>,
}

impl Types {
    /// f32 logits, whatever the activations are.
    pub const LOGITS: Types = Types { activation: None, weight: None, kv: None };

    /// Activations only.
    pub const fn of(activation: DType) -> Self {
        Types { activation: Some(activation), weight: None, kv: None }
    }

    /// Whether a device claims to take them.
    pub fn supported(&self, caps: &Caps) -> bool {
        self.activation.is_none_or(|a| caps.activations.contains(&a))
            && self.weight.is_none_or(|w| caps.weights.contains(&w))
            && self.kv.is_none_or(|k| caps.kv.contains(&k))
    }
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.activation.map_or("f32 logits", DType::name))?;
        self.weight.map_or(Ok(()), |w| write!(f, " w={w}"))?;
        self.kv.map_or(Ok(()), |k| write!(f, " kv={k}"))
    }
}

/// Which of the drawn rows to stage.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Rows of the host data, in the order they get on the device.
    pub rows: Vec<usize>,
    /// Rows of capacity past them.
    pub padding: usize,
}

impl Selection {
    /// The first `rows` rows.
    pub fn all(rows: usize, padding: usize) -> Self {
        Selection { rows: (0..rows).collect(), padding }
    }

    /// Rows the device tensors have.
    pub fn capacity(&self) -> usize {
        self.rows.len() + self.padding
    }

    /// `rows` of a row-major `[_, width]` matrix, in selection order.
    pub fn gather<T: Copy>(&self, values: &[T], width: usize) -> Vec<T> {
        self.rows.iter().flat_map(|&r| &values[r * width..(r + 1) * width]).copied().collect()
    }
}

/// A part of an output.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which output, in the order they were staged.
    pub output: usize,
    /// Row of its view.
    pub row: usize,
    /// Elements of the row; `None` for all.
    pub elements: Option<Range<usize>>,
}

impl Piece {
    /// A whole row.
    pub fn row(output: usize, row: usize) -> Self {
        Piece { output, row, elements: None }
    }
}

/// One op with parameters, types and a tolerance; shared by tests and benchmarks.
pub trait OpCase: Debug {
    /// The op's one name.
    const OP: &'static str;
    /// Inputs as drawn, rounded to their stored types.
    type Host;

    /// Element types.
    fn types(&self) -> Types;
    /// Live rows (sequences, for attention).
    fn rows(&self) -> usize;
    /// Rows of capacity past the live ones.
    fn padding(&self) -> usize {
        0
    }
    /// The largest single buffer it allocates, where that is large.
    fn largest_buffer(&self) -> u64 {
        0
    }
    /// Draws inputs.
    fn draw(&self, rng: &mut Rng) -> Self::Host;
    /// Puts the selected rows on a device.
    ///
    /// # Errors
    /// The backend's.
    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Self::Host,
        selection: &Selection,
        placement: Placement,
    ) -> anyfleet_tensor::Result<Staged<B>>;
    /// The inputs as a device takes them that rounds activations first ([`Caps::operands`]), in a run with `_rows` rows
    /// of capacity.
    fn rounded(&self, host: Self::Host, _caps: &Caps, _rows: usize) -> Self::Host {
        host
    }
    /// The inputs with the bf16 matrix that the drawn one of f8 reads as; `None` where there is none.
    fn as_bf16(&self, _host: &Self::Host) -> Option<Self::Host> {
        None
    }
    /// Whether the device promises a row's bits whatever the other rows are.
    fn invariant(&self, _caps: &Caps) -> bool {
        true
    }
    /// Whether rows have an order among each other, which a selection of them keeps.
    fn ordered(&self) -> bool {
        false
    }
    /// The reference: one [`Expected`] per output, in the order they were staged.
    fn expect(&self, host: &Self::Host, selection: &Selection) -> Vec<Expected>;
    /// Where a row's results are once it ran as row `position` of a batch: what must be the same
    /// bits in every batch.
    fn pieces(&self, _host: &Self::Host, _row: usize, position: usize) -> Vec<Piece> {
        vec![Piece::row(0, position)]
    }
    /// How close the outputs must come.
    fn tolerance(&self) -> Tolerance;
}

/// Live rows with padding, or every row when there is none.
pub(crate) fn live_of(live: Live, padding: usize) -> Live {
    assert!(live != Live::All || padding == 0, "padding rows need a live count");
    live
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within tolerance, nothing else touched, repeatable.
    Pass,
    /// Anything else.
    Fail,
    /// The backend gave an error: what it computes is not known.
    Error,
    /// The device does not claim these types, or has no room.
    Unsupported,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "ok",
            Verdict::Fail => "FAIL",
            Verdict::Error => "ERROR",
            Verdict::Unsupported => "unsupported",
        })
    }
}

/// The result of one case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The op's name.
    pub op: &'static str,
    /// Element types.
    pub types: Types,
    /// The whole case, as printed on failure.
    pub label: String,
    /// Normalised mean square error.
    pub nmse: f64,
    /// Largest error in units of its element's scale (see [`Want`](crate::expect::Want)).
    pub max_error: f64,
    /// Largest error in units of what is allowed.
    pub margin: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it failed.
    pub detail: String,
}

/// Why a case does not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was computed is not what it must be: a line that says where.
    #[error("{0}")]
    Wrong(String),
    /// The backend gave an error.
    #[error("the backend returned an error: {0}")]
    Device(#[from] anyfleet_tensor::Error),
}

impl From<String> for Failure {
    fn from(wrong: String) -> Self {
        Failure::Wrong(wrong)
    }
}

/// A case or property that can run on a backend.
pub trait Case<B: Backend> {
    /// The op's one name.
    fn op(&self) -> &'static str;
    /// Element types.
    fn types(&self) -> Types;
    /// Names the case and its parameters; the inputs follow from it and the seed.
    fn label(&self) -> String;
    /// The largest single buffer it allocates, where that is large.
    fn largest_buffer(&self) -> u64;
    /// Runs it.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure>;

    /// Memory after one run, or nothing for a property: see [`agree`](crate::suite::agree).
    ///
    /// # Errors
    /// What is wrong.
    fn bits(&self, _backend: &B, _rng: &mut Rng) -> Result<Option<Vec<Snapshot>>, Failure> {
        Ok(None)
    }

    /// Runs it with inputs that follow from `seed`; a panic of the backend is a failure.
    fn run(&self, backend: &B, seed: u64) -> Outcome {
        let label = self.label();
        let mut errors = Errors::default();
        let caps = backend.caps();
        let room = caps.max_buffer.is_none_or(|most| self.largest_buffer() <= most);
        let (verdict, detail) = if !self.types().supported(caps) || !room {
            (Verdict::Unsupported, String::new())
        } else {
            let mut rng = Rng::for_case(seed, &label);
            match catch_unwind(AssertUnwindSafe(|| self.check(backend, &mut rng, &mut errors))) {
                Ok(Ok(())) => (Verdict::Pass, String::new()),
                Ok(Err(Failure::Wrong(why))) => (Verdict::Fail, why),
                Ok(Err(Failure::Device(error))) => (Verdict::Error, error.to_string()),
                Err(panic) => (Verdict::Fail, format!("panicked: {}", panic_text(&*panic))),
            }
        };
        Outcome {
            op: self.op(),
            types: self.types(),
            label,
            nmse: errors.nmse(),
            max_error: errors.max_error,
            margin: errors.margin,
            verdict,
            detail,
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("with a value that is no text")
}

/// Runs a staged op from its initial state and checks what must hold whatever it computes.
pub(crate) fn execute<B: Backend>(
    backend: &B,
    staged: &Staged<B>,
    live: usize,
    plan: Option<&B::Plan>,
) -> Result<Vec<Snapshot>, Failure> {
    staged.reset(backend, live)?;
    match plan {
        Some(plan) => backend.replay(plan),
        None => staged.run(backend),
    }?;
    let after = staged.read(backend)?;
    staged.trespass(&after).map_or(Ok(after), |wrong| Err(wrong.into()))
}

impl<B: Backend, C: OpCase> Case<B> for C {
    fn op(&self) -> &'static str {
        C::OP
    }
    fn types(&self) -> Types {
        OpCase::types(self)
    }
    fn label(&self) -> String {
        format!("{self:?}")
    }
    fn largest_buffer(&self) -> u64 {
        OpCase::largest_buffer(self)
    }

    /// Compares with the reference, then demands the same bits from a second run, from a replayed
    /// plan, and from that plan with other live counts against runs with those counts.
    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure> {
        let host = self.draw(rng);
        let selection = Selection::all(self.rows(), self.padding());
        let staged = self.stage(backend, &host, &selection, Placement::Scattered(rng.bits()))?;
        let live = staged.live();
        let first = execute(backend, &staged, live, None)?;
        let host = self.rounded(host, backend.caps(), selection.capacity());
        let expected = self.expect(&host, &selection);
        let tolerance = self.tolerance();
        let mut wrong = None;
        let mut outputs = 0;
        for ((operand, snapshot), want) in staged.outputs(&first).zip(&expected) {
            wrong = wrong.or(errors.check(operand, snapshot, want, &tolerance).err());
            outputs += 1;
        }
        assert_eq!(outputs, expected.len(), "{} stages and expects a different number of outputs", C::OP);
        if let Some(wrong) = wrong {
            return Err(format!("{wrong}; tolerance: {tolerance:?}").into());
        }
        if errors.nmse() > tolerance.nmse {
            let text = format!("NMSE {:e} is above {:e} ({})", errors.nmse(), tolerance.nmse, tolerance.reason);
            return Err(text.into());
        }
        if execute(backend, &staged, live, None)? != first {
            return Err("a second run on the same inputs gave other bits".to_owned().into());
        }
        let plan = staged.record(backend)?;
        if execute(backend, &staged, live, Some(&plan))? != first {
            return Err("replaying the recorded plan gave other bits than running it".to_owned().into());
        }
        let fewer = if staged.has_header() && live > 0 { vec![0, live / 2, live] } else { vec![] };
        for count in fewer {
            if execute(backend, &staged, count, Some(&plan))? != execute(backend, &staged, count, None)? {
                let text = format!("replaying with {count} live rows gave other bits than running with them");
                return Err(text.into());
            }
        }
        Ok(())
    }

    fn bits(&self, backend: &B, rng: &mut Rng) -> Result<Option<Vec<Snapshot>>, Failure> {
        let host = self.draw(rng);
        let selection = Selection::all(self.rows(), self.padding());
        let staged = self.stage(backend, &host, &selection, Placement::Scattered(rng.bits()))?;
        execute(backend, &staged, staged.live(), None).map(Some)
    }
}
