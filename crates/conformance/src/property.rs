//! Properties that hold bit for bit: a row's result depends on that row alone.
use crate::case::{Case, Failure, OpCase, Selection, Types, execute};
use crate::cases::attention::{AttentionCase, Batch, Host as AttentionHost, Span};
use crate::expect::Errors;
use crate::operand::Snapshot;
use crate::rng::Rng;
use crate::stage::{Placement, Staged};
use anyfleet_tensor::{Backend, DType};

/// The rows of a case give the same bits alone, in other batches, in another order and at other
/// places in memory. Where a device does not promise that of an operation, they are as close to the reference in all of
/// these as they must be.
#[derive(Debug)]
pub struct RowIndependence<C>(pub C);

/// Bytes of one row's results.
fn row_bits<B: Backend, C: OpCase>(
    case: &C,
    host: &C::Host,
    staged: &Staged<B>,
    after: &[Snapshot],
    row: usize,
    position: usize,
) -> Vec<u8> {
    let outputs: Vec<_> = staged.outputs(after).collect();
    let mut bits = Vec::new();
    for piece in case.pieces(host, row, position) {
        let (operand, snapshot) = outputs[piece.output];
        let bytes = operand.row(snapshot, piece.row).expect("a piece names a row of its output");
        let size = operand.view().dtype().size();
        bits.extend_from_slice(piece.elements.map_or(bytes, |e| &bytes[e.start * size..e.end * size]));
    }
    bits
}

impl<C: OpCase> RowIndependence<C> {
    /// Runs a selection and returns each of its rows' bits.
    fn bits<B: Backend>(
        &self,
        backend: &B,
        host: &C::Host,
        selection: &Selection,
        seed: u64,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let staged = self.0.stage(backend, host, selection, Placement::Scattered(seed))?;
        let after = execute(backend, &staged, selection.rows.len(), None)?;
        let rows = selection.rows.iter().enumerate();
        Ok(rows.map(|(position, &row)| row_bits(&self.0, host, &staged, &after, row, position)).collect())
    }
}

impl<C: OpCase> RowIndependence<C> {
    /// Compares a batch with the reference: what is left where the device does not promise the bits.
    fn near<B: Backend>(
        &self,
        backend: &B,
        (rng, rows): (&Rng, Vec<usize>),
        seed: u64,
        errors: &mut Errors,
    ) -> Result<(), Failure> {
        let (host, selection) = (self.0.draw(&mut rng.clone()), Selection { padding: 0, rows });
        let staged = self.0.stage(backend, &host, &selection, Placement::Scattered(seed))?;
        let count = selection.rows.len();
        let after = execute(backend, &staged, count, None)?;
        let expected = self.0.expect(&self.0.rounded(host, backend.caps(), count), &selection);
        for ((operand, snapshot), want) in staged.outputs(&after).zip(&expected) {
            errors
                .check(operand, snapshot, want, &self.0.tolerance())
                .map_err(|wrong| format!("in a batch of {count}, {wrong}"))?;
        }
        Ok(())
    }
}

impl<B: Backend, C: OpCase> Case<B> for RowIndependence<C> {
    fn op(&self) -> &'static str {
        C::OP
    }
    fn types(&self) -> Types {
        self.0.types()
    }
    fn label(&self) -> String {
        format!("{self:?}")
    }
    fn largest_buffer(&self) -> u64 {
        self.0.largest_buffer()
    }

    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure> {
        let drawn = rng.clone();
        let host = self.0.draw(rng);
        let rows = self.0.rows();
        let invariant = self.0.invariant(backend.caps());
        let together = self.bits(backend, &host, &Selection::all(rows, self.0.padding()), rng.bits())?;
        let mut order: Vec<usize> = (0..rows).collect();
        rng.shuffle(&mut order);
        // Some rows alone, then all of them in another order in batches of growing size.
        let mut batches: Vec<Vec<usize>> = order.iter().take(4).map(|&r| vec![r]).collect();
        let mut left = &order[..];
        for size in [2, 3, 5, 7, 16, 33, usize::MAX] {
            let (batch, rest) = left.split_at(size.min(left.len()));
            batches.push(batch.to_vec());
            left = rest;
        }
        for mut rows in batches.into_iter().filter(|b| !b.is_empty()) {
            if self.0.ordered() {
                rows.sort_unstable();
            }
            if !invariant {
                self.near(backend, (&drawn, rows), rng.bits(), errors)?;
                continue;
            }
            let selection = Selection { padding: 0, rows };
            let apart = self.bits(backend, &host, &selection, rng.bits())?;
            for (&row, bits) in selection.rows.iter().zip(&apart) {
                errors.compared += 1;
                if *bits != together[row] {
                    let text = format!(
                        "row {row} in a batch of {} gave other bits than in a batch of {}",
                        selection.rows.len(),
                        together.len()
                    );
                    return Err(text.into());
                }
            }
        }
        Ok(())
    }
}

/// A matrix of f8 gives the bits of the bf16 matrix that it reads as.
#[derive(Debug)]
pub struct ReadsAsBf16<C>(pub C);

impl<B: Backend, C: OpCase> Case<B> for ReadsAsBf16<C> {
    fn op(&self) -> &'static str {
        C::OP
    }
    fn types(&self) -> Types {
        self.0.types()
    }
    fn label(&self) -> String {
        format!("{self:?}")
    }
    fn largest_buffer(&self) -> u64 {
        self.0.largest_buffer()
    }

    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure> {
        let host = self.0.draw(rng);
        let wide = self.0.as_bf16(&host).ok_or_else(|| format!("{} has no matrix", C::OP))?;
        let (selection, seed) = (Selection::all(self.0.rows(), self.0.padding()), rng.bits());
        let run = |host: &C::Host| -> Result<Vec<Vec<u8>>, Failure> {
            let staged = self.0.stage(backend, host, &selection, Placement::Scattered(seed))?;
            let after = execute(backend, &staged, staged.live(), None)?;
            let rows = 0..selection.rows.len();
            Ok(rows.map(|row| row_bits(&self.0, host, &staged, &after, row, row)).collect())
        };
        for (row, (narrow, wide)) in run(&host)?.iter().zip(run(&wide)?).enumerate() {
            errors.compared += 1;
            if *narrow != wide {
                let text = format!("row {row} gave other bits than with the bf16 matrix that the one of f8 reads as");
                return Err(text.into());
            }
        }
        Ok(())
    }
}

/// Queries give the same bits as one prefill, in chunks, one by one, beside other sequences, with
/// other page sizes and once a window's dead pages are gone.
#[derive(Debug)]
pub struct ChunkIndependence(pub AttentionCase);

impl ChunkIndependence {
    /// Runs a batch and stores its rows' bits by sequence and query row.
    fn bits<B: Backend>(
        &self,
        backend: &B,
        host: &AttentionHost,
        batch: &Batch,
        seed: u64,
        found: &mut [Vec<Vec<u8>>],
    ) -> Result<(), Failure> {
        let staged = self.0.stage_batch(backend, host, batch, 0, Placement::Scattered(seed))?;
        let after = execute(backend, &staged, batch.spans.len(), None)?;
        let (out, snapshot) = staged.outputs(&after).next().expect("attention has an output");
        for span in &batch.spans {
            for row in 0..span.rows {
                let bits = out.row(snapshot, span.row_start + row).expect("a span's row is in the batch");
                found[span.sequence][span.first + row] = bits.to_vec();
            }
        }
        Ok(())
    }

    /// Cuts every sequence into chunks of at most `most` rows and deals them out to batches in
    /// order, so that a batch has at most one chunk of each sequence.
    fn batches(&self, most: usize, page: usize, drop_pages: bool, rng: &mut Rng) -> Vec<Batch> {
        let mut next = vec![0; self.0.sequences.len()];
        let mut batches = Vec::new();
        while next.iter().zip(&self.0.sequences).any(|(&n, s)| n < s.rows) {
            let mut batch = Batch { spans: Vec::new(), tokens: rng.below(2), page, drop_pages, seed: rng.bits() };
            for (sequence, (first, length)) in next.iter_mut().zip(&self.0.sequences).enumerate() {
                let left = length.rows - *first;
                // Leaving a sequence out now and then mixes decodes with prefills.
                if left == 0 || rng.chance(0.2) {
                    continue;
                }
                let rows = rng.range(1, most.min(left));
                batch.spans.push(Span { sequence, first: *first, rows, row_start: batch.tokens });
                batch.tokens += rows;
                *first += rows;
            }
            if !batch.spans.is_empty() {
                batches.push(batch);
            }
        }
        batches
    }
}

/// Whether attention has the same bits over a cache of another type that holds the same numbers.
///
/// # Errors
/// What is wrong, with the case.
pub(crate) fn agrees_over<B: Backend>(case: &AttentionCase, kv: DType, backend: &B, seed: u64) -> Result<(), Failure> {
    let host = case.draw(&mut Rng::for_case(seed, &format!("{case:?}")));
    let rows = |case: &AttentionCase| -> Result<Vec<Vec<Vec<u8>>>, Failure> {
        let mut found = case.sequences.iter().map(|s| vec![Vec::new(); s.rows]).collect::<Vec<_>>();
        ChunkIndependence(case.clone()).bits(backend, &host, &host.batch, seed, &mut found)?;
        Ok(found)
    };
    match rows(case)? == rows(&AttentionCase { kv, ..case.clone() })? {
        true => Ok(()),
        false => Err(format!("other bits than over {kv} with ANYFLEET_SEED={seed} in {case:?}").into()),
    }
}

impl<B: Backend> Case<B> for ChunkIndependence {
    fn op(&self) -> &'static str {
        self.0.op()
    }
    fn types(&self) -> Types {
        OpCase::types(&self.0)
    }
    fn label(&self) -> String {
        format!("{self:?}")
    }
    fn largest_buffer(&self) -> u64 {
        OpCase::largest_buffer(&self.0)
    }

    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure> {
        let host = self.0.draw(rng);
        let empty: Vec<Vec<Vec<u8>>> = self.0.sequences.iter().map(|s| vec![Vec::new(); s.rows]).collect();
        let mut whole = empty.clone();
        self.bits(backend, &host, &host.batch, rng.bits(), &mut whole)?;
        for (most, page) in [(1, 16), (7, 64), (64, 3), (3, 1), (1000, 5)] {
            let mut cut = empty.clone();
            let drop_pages = rng.chance(0.5);
            for batch in self.batches(most, page, drop_pages, rng) {
                self.bits(backend, &host, &batch, rng.bits(), &mut cut)?;
            }
            for (sequence, (whole, cut)) in whole.iter().zip(&cut).enumerate() {
                for (row, (whole, cut)) in whole.iter().zip(cut).enumerate() {
                    errors.compared += 1;
                    if whole != cut {
                        let text = format!(
                            "query {row} of sequence {sequence} gave other bits in chunks of at most {most} rows \
                             with pages of {page} (drop_pages {drop_pages}) than in one prefill with pages of {}",
                            self.0.page
                        );
                        return Err(text.into());
                    }
                }
            }
        }
        Ok(())
    }
}
