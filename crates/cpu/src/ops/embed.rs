//! `embed`: rows gathered out of the packed matrix.
use crate::CpuBackend;
use crate::panels::Form;
use crate::plan::Context;
use crate::simd::LANES;
use crate::view::{View, check_apart};
use crate::weight::CpuWeight;
use anyfleet_tensor::ops::{Embed, SAMPLED};
use anyfleet_tensor::{Live, Result};
use half::bf16;

pub(crate) struct EmbedOp {
    out: View,
    ids: View,
    sampled: Option<View>,
    weight: CpuWeight,
    scale: f32,
    live: Live,
}

impl EmbedOp {
    pub(crate) fn new(op: &Embed<'_, CpuBackend>) -> Result<Self> {
        let (out, ids) = (View::new("embed", op.out)?, View::new("embed", op.ids)?);
        let sampled = op.sampled.map(|sampled| View::new("embed", sampled)).transpose()?;
        for input in std::iter::once(&ids).chain(&sampled) {
            check_apart("embed", &out, input)?;
        }
        Ok(EmbedOp { out, ids, sampled, weight: op.weight.clone(), scale: op.scale, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.out.rows());
        // A gathered element costs a cache line.
        ctx.split(rows, self.out.cols() * LANES, |range| {
            for row in range {
                let id = self.id(row) as usize;
                assert!(id < self.weight.rows(), "embed: id {id} of a vocabulary of {}", self.weight.rows());
                // SAFETY: each task has its own output rows.
                let out = unsafe { self.out.slice_mut::<f32>(row) };
                gather(&self.weight, id, out);
                if self.scale != 1.0 {
                    out.iter_mut().for_each(|value| *value *= self.scale);
                }
            }
        });
    }
}

impl EmbedOp {
    fn id(&self, row: usize) -> u32 {
        let id = self.ids.u32_at(row);
        match &self.sampled {
            Some(sampled) if id & SAMPLED != 0 => sampled.u32_at((id & !SAMPLED) as usize),
            _ => id,
        }
    }
}

/// Row `id`, as numbers.
fn gather(weight: &CpuWeight, id: usize, out: &mut [f32]) {
    let (panel, n) = weight.place_of(id);
    match weight.form() {
        Some(form @ Form::Pairs) => {
            for (k, pair) in out.chunks_mut(2).enumerate() {
                // SAFETY: a pair of features stands together in the panel, padded to whole pairs.
                let values = unsafe { *weight.panel(panel).add(form.place(n, 2 * k).0).cast::<[bf16; 2]>() };
                pair.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
            }
        }
        Some(form @ Form::Bytes) => {
            // SAFETY: a panel has a scale for each of its 32 rows.
            let scale = unsafe { *weight.scales(panel).add(n) };
            for (k, four) in out.chunks_mut(4).enumerate() {
                // SAFETY: four features stand together in the panel, padded to whole fours.
                let values = unsafe { *weight.panel(panel).add(form.place(n, 4 * k).0).cast::<[i8; 4]>() };
                four.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from(value) * scale);
            }
        }
        _ => out.iter_mut().enumerate().for_each(|(k, value)| *value = weight.at(id, k)),
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::ops::Embed;
    use anyfleet_tensor::{Backend, DType, Live};

    #[test]
    fn rows_come_back() {
        for device in devices() {
            for store in FLOATS {
                let (vocabulary, width) = (37, 19);
                let source = random(1, vocabulary * width);
                let weight = weight(&device, &source, width, store);
                let ids = [36u32, 0, 15, 16, 16];
                let out = tensor(&device, &[POISON; 5 * 19], &[5, width]);
                let id_tensor = tensor_u32(&device, &ids, &[5]);
                bind(&device, 4, |enc| {
                    enc.embed(Embed {
                        out: &out,
                        ids: &id_tensor,
                        sampled: None,
                        weight: &weight,
                        scale: 1.0,
                        live: Live::Tokens,
                    })
                });
                let got = read(&device, &out);
                for (row, &id) in ids.iter().enumerate() {
                    for k in 0..width {
                        let want = if row < 4 { round(source[id as usize * width + k], store) } else { POISON };
                        assert_eq!(got[row * width + k], want);
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "embed: id 5")]
    fn ids_past_the_vocabulary_are_a_bug() {
        let device = &devices()[0];
        let weight = weight(device, &[0.0; 10], 2, DType::F32);
        let (out, ids) = (tensor(device, &[0.0; 2], &[1, 2]), tensor_u32(device, &[5], &[1]));
        device
            .run(|enc| {
                enc.embed(Embed { out: &out, ids: &ids, sampled: None, weight: &weight, scale: 1.0, live: Live::All })
            })
            .unwrap();
    }
}
