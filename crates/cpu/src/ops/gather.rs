//! `gather`: copies chosen rows.
use crate::CpuBackend;
use crate::plan::Context;
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::Gather;
use anyfleet_tensor::{Live, Result};

pub(crate) struct GatherOp {
    out: View,
    x: View,
    rows: View,
    live: Live,
}

impl GatherOp {
    pub(crate) fn new(op: &Gather<'_, CpuBackend>) -> Result<Self> {
        let (out, x, rows) = (View::new("gather", op.out)?, View::new("gather", op.x)?, View::new("gather", op.rows)?);
        check_apart("gather", &out, &x)?;
        check_apart("gather", &out, &rows)?;
        Ok(GatherOp { out, x, rows, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let live = ctx.live(self.live, self.out.rows());
        ctx.split(live, self.out.cols(), |range| {
            for i in range {
                let row = self.rows.u32_at(i) as usize;
                assert!(row < self.x.rows(), "gather: row {row} of {}", self.x.rows());
                // SAFETY: each task has its own output rows, and `x` is apart from them.
                unsafe { self.out.slice_mut::<f32>(i).copy_from_slice(self.x.slice::<f32>(row)) };
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::ops::Gather;
    use anyfleet_tensor::{Backend, Live};

    #[test]
    fn rows_in_any_order() {
        let x = random(5, 4 * 9);
        for device in devices() {
            let source = columns_of(&device, &x, 4, 9);
            let out = tensor(&device, &[POISON; 3 * 9], &[3, 9]);
            let rows = tensor_u32(&device, &[3, 1, 0], &[3]);
            bind(&device, 2, |enc| enc.gather(Gather { out: &out, x: &source, rows: &rows, live: Live::LogitRows }));
            let got = read(&device, &out);
            assert_eq!(got[..9], x[27..36]);
            assert_eq!(got[9..18], x[9..18]);
            assert_eq!(got[18..], [POISON; 9]);
        }
    }

    #[test]
    fn overlapping_outputs_are_refused() {
        let device = &devices()[0];
        let x = tensor(device, &[0.0; 12], &[4, 3]);
        let rows = tensor_u32(device, &[0, 1], &[2]);
        let refused = device.run(|enc| {
            enc.gather(Gather { out: &x.narrow(1, 2), x: &x.narrow(0, 2), rows: &rows, live: Live::All });
        });
        assert!(refused.unwrap_err().to_string().contains("overlaps"));
    }
}
