//! What a correct op leaves in memory, and how far off it may be.
use crate::number::{decode, poison, unit_roundoff};
use crate::operand::{Operand, Snapshot};
use anyfleet_tensor::{Backend, DType};

/// What is known of one element after the op ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// The reference's value. `scale` is the magnitude that rounding errors are relative to, e.g.
    /// the sum of the absolute products of a dot product: cancellation makes `value` a poor ruler.
    Near {
        /// Exact result for the stored inputs.
        value: f64,
        /// Magnitude of what was added up.
        scale: f64,
    },
    /// This value and no other.
    Exact(f64),
    /// The bytes from before.
    Kept,
    /// Some number: the large tier computes the reference of sampled elements only.
    Written,
    /// Anything: scratch.
    Any,
}

/// The live rows of one output, by row of its view. Rows not listed must be as they were.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Row and its elements.
    pub rows: Vec<(usize, Vec<Want>)>,
}

impl Expected {
    /// Rows `0..` of an output.
    pub fn dense(rows: impl IntoIterator<Item = Vec<Want>>) -> Self {
        Expected { rows: rows.into_iter().enumerate().collect() }
    }
}

/// How far an output may be from its reference.
///
/// An element passes when `|got - value| <= arithmetic * scale + rounding * |value|`, where rounding
/// is that of one store in the output's type; the whole
/// case passes when every element does and its normalised mean square error is at most `nmse`. The
/// mean says something from [`Tolerance::ENOUGH`] elements on, unless a few of them are all of it
/// ([`Tolerance::EFFECTIVE`]). What an element may be off however small it is does not count in it.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Bound of sum((got - value)^2) / sum(value^2).
    pub nmse: f64,
    /// Bound of one element's error in units of its scale: f32 arithmetic.
    pub arithmetic: f64,
    /// Why these numbers.
    pub reason: &'static str,
}

impl Tolerance {
    /// Fewer elements than this may all be small by cancellation.
    pub const ENOUGH: usize = 64;

    /// The sum of squares must be that of as many equal elements at least, (sum of v^2)^2 / sum of v^4: where rows differ
    /// by powers of ten, it is that of the two or three largest values, and the mean is only their errors again.
    pub const EFFECTIVE: f64 = 8.0;

    /// For ops that move numbers without arithmetic.
    pub const EXACT: Tolerance =
        Tolerance { nmse: 0.0, arithmetic: 0.0, reason: "the op only moves and converts numbers" };
}

/// Error that is allowed however small the value is: half a subnormal step of f16 or E4M3, and results that
/// f32 arithmetic may flush to zero.
fn floor(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / (1u64 << 25) as f64,
        DType::F8 => 1.0 / (1u64 << 10) as f64,
        _ => f32::MIN_POSITIVE as f64,
    }
}

/// Error figures over all outputs of a case.
#[derive(Clone, Copy, Debug, Default)]
pub struct Errors {
    square_error: f64,
    square_value: f64,
    quartic_value: f64,
    /// Largest error in units of its scale.
    pub max_error: f64,
    /// Largest error in units of what the tolerance allows; above 1 fails.
    pub margin: f64,
    /// Elements compared with a value.
    pub compared: usize,
}

impl Errors {
    /// Normalised mean square error: 0 when nothing differs, also where all values are zero, and of fewer elements than
    /// [`Tolerance::ENOUGH`] or [`Tolerance::EFFECTIVE`].
    pub fn nmse(&self) -> f64 {
        let few = self.square_value.powi(2) < Tolerance::EFFECTIVE * self.quartic_value;
        if self.square_error == 0.0 || self.compared < Tolerance::ENOUGH || few {
            0.0
        } else {
            self.square_error / self.square_value.max(f64::MIN_POSITIVE)
        }
    }

    fn near(&mut self, got: f64, (value, scale): (f64, f64), dtype: DType, tolerance: &Tolerance) -> bool {
        self.compared += 1;
        let error = (got - value).abs();
        // NaN must fail every comparison below.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        // What the floor allows is no share of a value.
        self.square_error += (error - floor(dtype)).max(0.0).powi(2);
        self.square_value += value * value;
        self.quartic_value += value.powi(4);
        let allowed = tolerance.arithmetic * scale + unit_roundoff(dtype) * value.abs() + floor(dtype);
        self.max_error = self.max_error.max(error / scale.max(floor(dtype)));
        self.margin = self.margin.max(error / allowed);
        error <= allowed
    }

    fn exact(&mut self, got: f64, value: f64) -> bool {
        self.compared += 1;
        if got == value {
            return true;
        }
        self.max_error = f64::INFINITY;
        self.margin = f64::INFINITY;
        false
    }

    /// Compares one output with what is expected of it.
    ///
    /// # Errors
    /// A line naming the first wrong element.
    pub(crate) fn check<B: Backend>(
        &mut self,
        operand: &Operand<B>,
        snapshot: &Snapshot,
        expected: &Expected,
        tolerance: &Tolerance,
    ) -> Result<(), String> {
        let before = operand.initial();
        let mut first = None;
        for row in operand.rows() {
            let (Some(now), Some(was)) = (operand.row(snapshot, row), operand.row(&before, row)) else { continue };
            match expected.rows.iter().find(|(r, _)| *r == row) {
                None if now != was => {
                    return Err(format!("{} row {row} is not live but was written", operand.name()));
                }
                None => {}
                Some((_, wants)) => {
                    let wrong = self.check_row(operand, now, was, wants, tolerance);
                    first = first.or(wrong.map(|w| format!("{}[{row}, {w}", operand.name())));
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Compares a row to its end, so that the figures cover all of it; returns the first wrong one.
    fn check_row<B: Backend>(
        &mut self,
        operand: &Operand<B>,
        now: &[u8],
        was: &[u8],
        wants: &[Want],
        tolerance: &Tolerance,
    ) -> Option<String> {
        let dtype = operand.view().dtype();
        assert_eq!(wants.len(), operand.view().cols(), "reference of {} has another width", operand.name());
        let mut first = None;
        for (i, want) in wants.iter().enumerate() {
            let range = i * dtype.size()..(i + 1) * dtype.size();
            let got = decode(dtype, now, i);
            let ok = match *want {
                Want::Near { value, scale } => self.near(got, (value, scale), dtype, tolerance),
                Want::Exact(value) => self.exact(got, value),
                Want::Kept => now[range.clone()] == was[range.clone()],
                Want::Written => now[range.clone()] != *poison(dtype) && !got.is_nan(),
                Want::Any => true,
            };
            if !ok && first.is_none() {
                let unwritten = if now[range] == *poison(dtype) { " (never written)" } else { "" };
                first = Some(format!("{i}] is {got:e}{unwritten}, expected {want:?}"));
            }
        }
        first
    }
}
