//! A case's operands on a device, ready to run again and again.
use crate::number::{encode, encode_u32};
use crate::operand::{Operand, Place, Role, Snapshot, Spec};
use crate::rng::Rng;
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result, StepHeader, Tensor};

/// How operands lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Placement {
    /// Contiguous, as the executor lays them out: for benchmarks.
    Plain,
    /// Matrices start at odd places and have gaps between rows; drawn from this seed.
    Scattered(u64),
}

/// Collects operands; [`Stage::finish`] makes a [`Staged`] of them.
pub struct Stage<'b, B: Backend> {
    backend: &'b B,
    scatter: Option<Rng>,
    operands: Vec<Operand<B>>,
}

/// A function that records a case's op.
pub type Record<B> = Box<dyn Fn(&mut Encoder<'_, B>) + Send + Sync>;

impl<'b, B: Backend> Stage<'b, B> {
    /// An empty stage.
    pub fn new(backend: &'b B, placement: Placement) -> Self {
        let scatter = match placement {
            Placement::Plain => None,
            Placement::Scattered(seed) => Some(Rng::new(seed)),
        };
        Stage { backend, scatter, operands: Vec::new() }
    }

    /// The device.
    pub fn backend(&self) -> &'b B {
        self.backend
    }

    fn place(&mut self) -> Place {
        let Some(rng) = &mut self.scatter else { return Place::default() };
        // Half of the operands stay contiguous: a backend may take another path for those.
        let front = if rng.chance(0.5) { 0 } else { rng.range(1, 9) };
        let gap = if front == 0 && rng.chance(0.5) { 0 } else { front + rng.range(0, 17) };
        Place { front, gap }
    }

    /// Adds an operand and returns its view.
    ///
    /// # Errors
    /// The backend's, from the allocation.
    pub fn operand(&mut self, spec: Spec<'_>) -> Result<Tensor<B>> {
        let place = self.place();
        let operand = Operand::new(self.backend, &spec, place)?;
        let view = operand.view().clone();
        self.operands.push(operand);
        Ok(view)
    }

    /// A float input of `shape` whose first rows are `values`.
    ///
    /// # Errors
    /// The backend's, from the allocation.
    pub fn input(&mut self, name: &'static str, dtype: DType, shape: &[usize], values: &[f32]) -> Result<Tensor<B>> {
        self.operand(Spec { name, role: Role::Input, dtype, shape, data: &encode(dtype, values) })
    }

    /// A u32 input of `shape` whose first rows are `values`.
    ///
    /// # Errors
    /// The backend's, from the allocation.
    pub fn indices(&mut self, name: &'static str, shape: &[usize], values: &[u32]) -> Result<Tensor<B>> {
        self.operand(Spec { name, role: Role::Input, dtype: DType::U32, shape, data: &encode_u32(values) })
    }

    /// A poisoned output.
    ///
    /// # Errors
    /// The backend's, from the allocation.
    pub fn output(&mut self, name: &'static str, dtype: DType, shape: &[usize]) -> Result<Tensor<B>> {
        self.operand(Spec { name, role: Role::Output, dtype, shape, data: &[] })
    }

    /// An operand that is read and written: `values`, then poison.
    ///
    /// # Errors
    /// The backend's, from the allocation.
    pub fn in_place(&mut self, name: &'static str, dtype: DType, shape: &[usize], values: &[f32]) -> Result<Tensor<B>> {
        self.operand(Spec { name, role: Role::InPlace, dtype, shape, data: &encode(dtype, values) })
    }

    /// An operand of which only `rows` are filled and looked at; an empty row is poison.
    pub fn sparse(&mut self, name: &'static str, output: bool, view: &Tensor<B>, rows: Vec<(usize, Vec<u8>)>) {
        self.operands.push(Operand::sparse(name, output, view.clone(), rows));
    }

    /// Ends the stage. `live` is the count the op's rows are bounded by; unless it is
    /// [`Live::All`], a header is bound before the op.
    ///
    /// # Errors
    /// The backend's, from the header's allocation.
    pub fn finish(mut self, live: Live, count: usize, record: Record<B>) -> Result<Staged<B>> {
        // The other counts are wrong on purpose: an op that reads one of them fails.
        let decoy = self.scatter.as_mut().map_or(0, |rng| rng.below(2 * count + 2) as u32);
        let header = match live {
            Live::All => None,
            _ => Some(Tensor::new(self.backend, DType::U32, &[4])?),
        };
        Ok(Staged { operands: self.operands, header, live, count, decoy, record })
    }
}

/// Operands on a device and the op over them.
pub struct Staged<B: Backend> {
    operands: Vec<Operand<B>>,
    header: Option<Tensor<B>>,
    live: Live,
    count: usize,
    decoy: u32,
    record: Record<B>,
}

impl<B: Backend> Staged<B> {
    /// Puts all operands into their initial state, with the first `live` rows live.
    ///
    /// # Errors
    /// The backend's.
    pub fn reset(&self, backend: &B, live: usize) -> Result<()> {
        self.operands.iter().try_for_each(|o| o.reset(backend))?;
        let Some(tensor) = &self.header else { return Ok(()) };
        let mut header =
            StepHeader { tokens: self.decoy, sequences: self.decoy, logit_rows: self.decoy, ..StepHeader::default() };
        match self.live {
            Live::All => {}
            Live::Tokens => header.tokens = live as u32,
            Live::Sequences => header.sequences = live as u32,
            Live::LogitRows => header.logit_rows = live as u32,
        }
        backend.write(tensor, bytemuck::bytes_of(&header))
    }

    /// Runs the op once on whatever the operands hold.
    ///
    /// # Errors
    /// The backend's.
    pub fn run(&self, backend: &B) -> Result<()> {
        backend.run(|encoder| self.encode(encoder))
    }

    /// Records the op as a plan.
    ///
    /// # Errors
    /// The backend's.
    pub fn record(&self, backend: &B) -> Result<B::Plan> {
        backend.record(|encoder| self.encode(encoder))
    }

    fn encode(&self, encoder: &mut Encoder<'_, B>) {
        if let Some(header) = &self.header {
            encoder.header(header);
        }
        (self.record)(encoder);
    }

    /// Rows that are live in the case as drawn.
    pub fn live(&self) -> usize {
        self.count
    }

    /// True when a header bounds the rows.
    pub fn has_header(&self) -> bool {
        self.header.is_some()
    }

    pub(crate) fn read(&self, backend: &B) -> Result<Vec<Snapshot>> {
        self.operands.iter().map(|o| o.read(backend)).collect()
    }

    pub(crate) fn outputs<'s>(
        &'s self,
        snapshots: &'s [Snapshot],
    ) -> impl Iterator<Item = (&'s Operand<B>, &'s Snapshot)> {
        self.operands.iter().zip(snapshots).filter(|(o, _)| o.is_output())
    }

    pub(crate) fn trespass(&self, snapshots: &[Snapshot]) -> Option<String> {
        self.operands.iter().zip(snapshots).find_map(|(o, s)| o.trespass(s))
    }
}
