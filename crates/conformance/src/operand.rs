//! Device tensors surrounded by poison, and the comparison of what is in them afterwards.
use crate::number::{encode, poison};
use anyfleet_tensor::{Backend, DType, Readback, Result, Tensor};

/// Where an operand lies in its buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Elements between the guard row before the view and its first column.
    pub front: usize,
    /// Elements between the end of one row and the start of the next, `front` included.
    pub gap: usize,
}

/// What an op does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads it.
    Input,
    /// Writes it; it starts as poison.
    Output,
    /// Reads and writes it.
    InPlace,
}

/// What to allocate.
#[derive(Debug)]
pub struct Spec<'a> {
    /// Its name in the op's struct.
    pub name: &'static str,
    /// What the op does with it.
    pub role: Role,
    /// Element type.
    pub dtype: DType,
    /// Capacity: 1 to 4 dimensions.
    pub shape: &'a [usize],
    /// First rows of the contents. The rest of a float input is a plain number, as stale rows past
    /// the live ones are: a result computed from poison could be that same poison. The rest of
    /// everything else is poison.
    pub data: &'a [u8],
}

/// A contiguous piece of the device's memory and what the host put there.
struct Chunk<B: Backend> {
    tensor: Tensor<B>,
    initial: Vec<u8>,
    /// The view's row it holds; unused when the chunk is the whole buffer.
    row: usize,
}

/// One operand of a staged op.
pub struct Operand<B: Backend> {
    name: &'static str,
    output: bool,
    view: Tensor<B>,
    chunks: Vec<Chunk<B>>,
    /// Byte offset of row 0 and distance of rows in the only chunk; `None` when chunks are rows.
    grid: Option<(usize, usize)>,
}

/// Bytes of an operand's chunks, read back.
pub type Snapshot = Vec<Vec<u8>>;

impl<B: Backend> Operand<B> {
    /// Allocates a buffer with one guard row on either side of the view, all poison but `data`.
    pub(crate) fn new(backend: &B, spec: &Spec<'_>, place: Place) -> Result<Self> {
        let (dtype, rows) = (spec.dtype, spec.shape[0]);
        let cols: usize = spec.shape[1..].iter().product();
        let place = if spec.shape.len() == 2 { place } else { Place::default() };
        let stride = cols + place.gap;
        // A one-dimensional view has rows of one element; a guard of that size would be thin.
        let guard = if spec.shape.len() == 1 { 16 } else { 1 };
        let bytes = (rows + 2 * guard) * stride * dtype.size();
        let buffer = backend.alloc(bytes)?;
        let mut shape = spec.shape.to_vec();
        shape[0] += 2 * guard;
        if shape.len() == 2 {
            shape[1] = stride;
        }
        let mut view = Tensor::from_buffer(buffer.clone(), dtype, &shape).narrow(guard, rows);
        if shape.len() == 2 {
            view = view.columns(place.front, cols);
        }
        let mut initial: Vec<u8> = poison(dtype).iter().copied().cycle().take(bytes).collect();
        let row_bytes = cols * dtype.size();
        let (start, step) = (view.offset(), stride * dtype.size());
        if spec.role != Role::Output && dtype.is_float() {
            let stale = encode(dtype, &vec![0.75; cols]);
            (0..rows).for_each(|row| initial[start + row * step..][..row_bytes].copy_from_slice(&stale));
        }
        for (row, data) in spec.data.chunks(row_bytes.max(1)).enumerate() {
            initial[start + row * step..][..data.len()].copy_from_slice(data);
        }
        let tensor = Tensor::from_buffer(buffer, DType::U8, &[bytes]);
        let chunks = vec![Chunk { tensor, initial, row: 0 }];
        Ok(Operand { name: spec.name, output: spec.role != Role::Input, view, chunks, grid: Some((start, step)) })
    }

    /// Only the given rows of `view` are written, read and compared: for buffers too large to copy.
    /// An empty row stands for poison.
    pub(crate) fn sparse(name: &'static str, output: bool, view: Tensor<B>, rows: Vec<(usize, Vec<u8>)>) -> Self {
        let bytes = view.cols() * view.dtype().size();
        let fill = |data: Vec<u8>| {
            if data.is_empty() { poison(view.dtype()).iter().copied().cycle().take(bytes).collect() } else { data }
        };
        let chunks =
            rows.into_iter().map(|(row, data)| Chunk { tensor: view.narrow(row, 1), initial: fill(data), row });
        Operand { name, output, chunks: chunks.collect(), grid: None, view }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
    pub(crate) fn is_output(&self) -> bool {
        self.output
    }
    pub(crate) fn view(&self) -> &Tensor<B> {
        &self.view
    }

    /// Puts the initial contents back.
    pub(crate) fn reset(&self, backend: &B) -> Result<()> {
        self.chunks.iter().try_for_each(|c| backend.write(&c.tensor, &c.initial))
    }

    pub(crate) fn read(&self, backend: &B) -> Result<Snapshot> {
        let read = |chunk: &Chunk<B>| {
            let mut bytes = vec![0; chunk.initial.len()];
            backend.read(&chunk.tensor)?.wait(&mut bytes)?;
            Ok(bytes)
        };
        self.chunks.iter().map(read).collect()
    }

    pub(crate) fn initial(&self) -> Snapshot {
        self.chunks.iter().map(|c| c.initial.clone()).collect()
    }

    /// Rows of the view that a snapshot covers.
    pub(crate) fn rows(&self) -> Vec<usize> {
        match self.grid {
            Some(_) => (0..self.view.rows()).collect(),
            None => self.chunks.iter().map(|c| c.row).collect(),
        }
    }

    /// One row of a snapshot, or nothing where the snapshot does not cover it.
    pub(crate) fn row<'s>(&self, snapshot: &'s Snapshot, row: usize) -> Option<&'s [u8]> {
        let bytes = self.view.cols() * self.view.dtype().size();
        match self.grid {
            Some((start, step)) => (row < self.view.rows()).then(|| &snapshot[0][start + row * step..][..bytes]),
            None => self.chunks.iter().position(|c| c.row == row).map(|i| &snapshot[i][..]),
        }
    }

    /// Says where memory that the op must not touch has changed: anywhere in an input, outside the
    /// view of an output.
    pub(crate) fn trespass(&self, snapshot: &Snapshot) -> Option<String> {
        let row_bytes = self.view.cols() * self.view.dtype().size();
        for (chunk, now) in self.chunks.iter().zip(snapshot) {
            if chunk.initial == *now {
                continue;
            }
            for (i, _) in chunk.initial.iter().zip(now).enumerate().filter(|(_, (was, is))| was != is) {
                let place = match self.grid {
                    None if self.output => continue,
                    None => format!("row {} byte {i}", chunk.row),
                    Some((start, step)) => {
                        let (row, byte) = if i < start { (0, i) } else { ((i - start) / step, (i - start) % step) };
                        let inside = i >= start && row < self.view.rows() && byte < row_bytes;
                        match (self.output, inside, i < start) {
                            (true, true, _) => continue,
                            (false, true, _) => format!("row {row} byte {byte}"),
                            (_, false, true) => format!("{} bytes before row 0", start - i),
                            (_, false, false) => {
                                format!("row {row} + {} bytes past its end", byte - row_bytes.min(byte))
                            }
                        }
                    }
                };
                let what = if self.output { "memory outside output" } else { "input" };
                return Some(format!("{what} {} was written: {place}", self.name));
            }
        }
        None
    }
}
