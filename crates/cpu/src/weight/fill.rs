//! Packing a panel: sixteen rows of the checkpoint at a time become the lanes of vectors.
use super::CpuWeight;
use crate::panels::{Form, PANEL};
use crate::simd::{Cell, Kernel, LANES, Simd};
use anyfleet_tensor::{DType, HostPart, HostRow, WeightFormat, quant};
use half::{bf16, f16};

/// Bytes of a row that one transposition takes: sixteen units of four.
const LINE: usize = 64;

/// Memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Rows as numbers.
    values: Vec<f32>,
    /// Sixteen rows of the kept type.
    cells: Vec<u8>,
    /// Scales of groups, sixteen rows each.
    scales: Vec<f32>,
}

/// Fills panel `p` of a weight, which is zero.
pub(super) struct Fill<'a> {
    pub(super) weight: &'a CpuWeight,
    pub(super) parts: &'a [HostPart<'a>],
    pub(super) p: usize,
    pub(super) scratch: &'a mut Scratch,
    /// The panel.
    pub(super) panel: &'a mut [u8],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fill { weight, parts, p, scratch, panel } = self;
        let cols = weight.cols();
        for tile in 0..super::panel_rows(weight.format()) / LANES {
            let (first, end) = match weight.form() {
                Some(_) => weight.tile_rows(p, tile),
                None => (p * LANES, weight.rows().min((p + 1) * LANES)),
            };
            let rows = first..end.max(first);
            let before = weight.member() * weight.rows();
            let row = |i: usize| rows.clone().nth(i).map(|row| row_of(parts, before + row, cols));
            match (weight.form(), weight.format()) {
                (Some(Form::Nibbles), _) => {
                    let stride = cols.next_multiple_of(2 * quant::GROUP);
                    scratch.values.clear();
                    scratch.values.resize(LANES * stride, 0.0);
                    for (i, values) in scratch.values.chunks_mut(stride).enumerate() {
                        if let Some(row) = row(i) {
                            widen(s, row, &mut values[..cols]);
                        }
                    }
                    nibbles(s, &scratch.values, &mut scratch.scales, panel, tile);
                }
                (Some(Form::Bytes), _) => {
                    let stride = cols.next_multiple_of(LANES);
                    scratch.values.resize(stride, 0.0);
                    scratch.values[cols..].fill(0.0);
                    scratch.cells.resize(LANES * stride, 0);
                    let scales = panel.len() - (2 - tile) * LANES * size_of::<f32>();
                    for (i, cells) in scratch.cells.chunks_exact_mut(stride).enumerate() {
                        let Some(row) = row(i) else {
                            cells.fill(0);
                            continue;
                        };
                        widen(s, row, &mut scratch.values[..cols]);
                        let scale = bytes(s, &scratch.values, bytemuck::cast_slice_mut(cells));
                        panel[scales + i * size_of::<f32>()..][..size_of::<f32>()]
                            .copy_from_slice(&scale.to_le_bytes());
                    }
                    let rows = std::array::from_fn(|i| &scratch.cells[i * stride..][..cols]);
                    tiles(s, &rows, panel, Form::Bytes, tile);
                }
                (Some(Form::Eights), _) => {
                    let stride = cols.next_multiple_of(Form::Eights.features());
                    scratch.cells.clear();
                    scratch.cells.resize(LANES * stride, 0);
                    scratch.scales.resize(cols.div_ceil(quant::F8_GROUP), 0.0);
                    let tail = panel.len() - Form::Eights.tail_bytes(cols) + tile * LANES * size_of::<f32>();
                    for (i, cells) in scratch.cells.chunks_exact_mut(stride).enumerate() {
                        let Some(row) = row(i) else { continue };
                        row.f8(&mut cells[..cols], &mut scratch.scales);
                        for (group, scale) in scratch.scales.iter().enumerate() {
                            panel[tail + (group * PANEL + i) * size_of::<f32>()..][..size_of::<f32>()]
                                .copy_from_slice(&scale.to_le_bytes());
                        }
                    }
                    let rows = std::array::from_fn(|i| &scratch.cells[i * stride..][..stride]);
                    eights(s, &rows, panel, tile);
                }
                (Some(Form::Pairs), _) => {
                    let rows = kept::<S, bf16>(s, DType::BF16, row, cols, scratch);
                    tiles(s, &rows, panel, Form::Pairs, tile);
                }
                (None, WeightFormat::Float(DType::F32)) => {
                    let rows = kept::<S, f32>(s, DType::F32, row, cols, scratch);
                    floats(s, &rows, panel);
                }
                (None, _) => {
                    let rows = kept::<S, f16>(s, DType::F16, row, cols, scratch);
                    halves(s, &rows, panel);
                }
            }
        }
    }
}

/// Output row `row` over all parts.
fn row_of<'a>(parts: &[HostPart<'a>], mut row: usize, cols: usize) -> HostRow<'a> {
    for part in parts {
        if row < part.rows {
            return part.row(row, cols);
        }
        row -= part.rows;
    }
    unreachable!("the weight was checked: it has row {row}")
}

/// A row of any type and alignment as numbers.
#[inline(always)]
fn widen<S: Simd>(s: S, row: HostRow<'_>, out: &mut [f32]) {
    match row.dtype {
        DType::F32 => widen_cells::<S, f32>(s, row.bytes, out),
        DType::BF16 => widen_cells::<S, bf16>(s, row.bytes, out),
        DType::F16 => widen_cells::<S, f16>(s, row.bytes, out),
        _ => row.values(out),
    }
}

#[inline(always)]
fn widen_cells<S: Simd, C: Cell>(s: S, bytes: &[u8], out: &mut [f32]) {
    let (bytes, rest) = bytes.split_at(out.len() / LANES * LANES * size_of::<C>());
    let mut groups = out.chunks_exact_mut(LANES);
    for (out, bytes) in groups.by_ref().zip(bytes.chunks_exact(LANES * size_of::<C>())) {
        // SAFETY: both have sixteen elements; vectors are loaded from any address.
        unsafe { s.store(out.as_mut_ptr(), C::load(s, bytes.as_ptr().cast())) };
    }
    for (out, cell) in groups.into_remainder().iter_mut().zip(rest.chunks_exact(size_of::<C>())) {
        *out = bytemuck::pod_read_unaligned::<C>(cell).widen();
    }
}

/// Sixteen rows in the type they are kept in: as they lie in the checkpoint where that is their type,
/// converted otherwise; rows that are not there are zero.
#[inline(always)]
fn kept<'a, S: Simd, C: Cell>(
    s: S,
    dtype: DType,
    row: impl Fn(usize) -> Option<HostRow<'a>>,
    cols: usize,
    scratch: &'a mut Scratch,
) -> [&'a [u8]; LANES] {
    let rows: [_; LANES] = std::array::from_fn(row);
    let size = cols * size_of::<C>();
    let Scratch { values, cells, .. } = scratch;
    if rows.iter().any(|row| row.is_none_or(|row| row.dtype != dtype)) {
        values.resize(cols, 0.0);
        cells.resize(LANES * size, 0);
        for (row, cells) in rows.iter().zip(cells.chunks_exact_mut(size)) {
            match *row {
                None => cells.fill(0),
                Some(row) if row.dtype == dtype => {}
                Some(row) => {
                    widen(s, row, &mut values[..cols]);
                    for (cell, &value) in cells.chunks_exact_mut(size_of::<C>()).zip(&values[..cols]) {
                        cell.copy_from_slice(bytemuck::bytes_of(&C::narrow(value)));
                    }
                }
            }
        }
    }
    let cells: &[u8] = cells;
    std::array::from_fn(|i| match rows[i] {
        Some(row) if row.dtype == dtype => row.bytes,
        _ => &cells[i * size..][..size],
    })
}

/// Sixteen units of four bytes of each row from byte `start` on, rows as lanes; zero past a row's end.
#[inline(always)]
fn units<S: Simd>(s: S, rows: &[&[u8]; LANES], start: usize) -> [S::V; LANES] {
    let mut square = [s.splat(0.0); LANES];
    for (v, row) in square.iter_mut().zip(rows) {
        let row = &row[start..];
        *v = if row.len() >= LINE {
            // SAFETY: sixteen units are there. Moving them as floats changes no bits.
            unsafe { s.load(row.as_ptr().cast()) }
        } else {
            let mut line = [0u8; LINE];
            line[..row.len()].copy_from_slice(row);
            // SAFETY: as above.
            unsafe { s.load(line.as_ptr().cast()) }
        };
    }
    s.transpose(&mut square);
    square
}

/// Rows of pairs or bytes into the tiles of a panel.
#[inline(always)]
fn tiles<S: Simd>(s: S, rows: &[&[u8]; LANES], panel: &mut [u8], form: Form, tile: usize) {
    let tiles = panel.chunks_exact_mut(form.tile_bytes()).skip(tile).step_by(2);
    for (start, target) in (0..rows[0].len()).step_by(LINE).zip(tiles) {
        let square = units(s, rows, start);
        for (line, v) in target.chunks_exact_mut(LINE).zip(square) {
            // SAFETY: the line has sixteen units.
            unsafe { s.store(line.as_mut_ptr().cast(), v) };
        }
    }
}

/// Rows of f8, whole blocks of them, into the tiles of a panel.
#[inline(always)]
fn eights<S: Simd>(s: S, rows: &[&[u8]; LANES], panel: &mut [u8], tile: usize) {
    let form = Form::Eights;
    for start in (0..rows[0].len()).step_by(LINE) {
        let square = units(s, rows, start);
        // A unit is two pairs; what is past the last block is not there.
        let left = (rows[0].len() - start).min(LINE) / 4;
        for (i, v) in square.into_iter().enumerate().take(left) {
            let mut units = [0u32; LANES];
            // SAFETY: sixteen units of four bytes.
            unsafe { s.store(units.as_mut_ptr().cast(), v) };
            let (place, _) = form.place(tile * LANES, start + 4 * i);
            let (first, second) = panel[place..][..4 * LANES].split_at_mut(2 * LANES);
            for ((first, second), unit) in first.as_chunks_mut().0.iter_mut().zip(second.as_chunks_mut().0).zip(units) {
                let [a, b, c, d] = unit.to_le_bytes();
                (*first, *second) = ([a, b], [c, d]);
            }
        }
    }
}

/// Rows of f32 into `[K][16]`.
#[inline(always)]
fn floats<S: Simd>(s: S, rows: &[&[u8]; LANES], panel: &mut [u8]) {
    for (start, target) in (0..rows[0].len()).step_by(LINE).zip(panel.chunks_mut(LINE * LANES)) {
        let square = units(s, rows, start);
        for (line, v) in target.chunks_exact_mut(LINE).zip(square) {
            // SAFETY: the line has sixteen units.
            unsafe { s.store(line.as_mut_ptr().cast(), v) };
        }
    }
}

/// Rows of f16 into `[K][16]`.
#[inline(always)]
fn halves<S: Simd>(s: S, rows: &[&[u8]; LANES], panel: &mut [u8]) {
    let lines = rows[0].len() / 2;
    for (start, target) in (0..rows[0].len()).step_by(LINE).zip(panel.chunks_mut(LINE * LANES)) {
        let square = units(s, rows, start);
        let left = lines - start / 2;
        for (i, (two, v)) in target.chunks_mut(LINE).zip(square).enumerate().take(left.div_ceil(2)) {
            let mut pairs = [0u32; LANES];
            // SAFETY: sixteen units of four bytes.
            unsafe { s.store(pairs.as_mut_ptr().cast(), v) };
            let mut cells = [0u16; 2 * LANES];
            let (low, high) = cells.split_at_mut(LANES);
            for ((low, high), pair) in low.iter_mut().zip(high).zip(pairs) {
                (*low, *high) = (pair as u16, (pair >> 16) as u16);
            }
            let bytes = if 2 * i + 1 < left { LINE } else { LINE / 2 };
            two[..bytes].copy_from_slice(&bytemuck::cast_slice(&cells)[..bytes]);
        }
    }
}

/// [`quant::q8_row`] for a row that zeros fill up to whole vectors.
#[inline(always)]
fn bytes<S: Simd>(s: S, w: &[f32], q: &mut [i8]) -> f32 {
    let zero = s.splat(0.0);
    // SAFETY: chunks of sixteen elements.
    let load = |w: &[f32]| unsafe { s.load(w.as_ptr()) };
    let mut most = zero;
    for w in w.chunks_exact(LANES) {
        let w = load(w);
        most = s.max(s.max(w, s.sub(zero, w)), most);
    }
    let most = s.reduce_max(most);
    if most == 0.0 || !most.is_finite() {
        q.fill(0);
        return if most == 0.0 { 0.0 } else { f32::NAN };
    }
    let scale = most / quant::BYTE;
    let (divisor, magic) = (s.splat(scale), s.splat(quant::ROUND));
    let (low, high) = (s.splat(-quant::BYTE), s.splat(quant::BYTE));
    for (w, q) in w.chunks_exact(LANES).zip(q.chunks_exact_mut(LANES)) {
        let v = s.sub(s.add(s.div(load(w), divisor), magic), magic);
        let positive = s.select_gt(v, high, high, v);
        let negative = s.select_gt(low, v, low, v);
        // What is not a number becomes 0.
        let v = s.select_gt(v, zero, positive, s.select_gt(zero, v, negative, zero));
        // SAFETY: sixteen bytes.
        unsafe { s.store_i8(q.as_mut_ptr(), v) };
    }
    scale
}

/// [`quant::q4_row`] for sixteen rows of numbers, zeros up to whole blocks, into the tiles, multipliers and
/// scales of a panel.
#[inline(always)]
fn nibbles<S: Simd>(s: S, values: &[f32], scales: &mut Vec<f32>, panel: &mut [u8], tile: usize) {
    const GROUP: usize = quant::GROUP;
    let (form, zero) = (Form::Nibbles, s.splat(0.0));
    let groups = values.len() / LANES / GROUP;
    scales.resize(groups * LANES, 0.0);
    let (mut most, mut finite) = (zero, zero);
    for (group, place) in scales.chunks_exact_mut(LANES).enumerate() {
        let scale = group_scale(s, &load_group(s, values, group));
        // SAFETY: sixteen scales.
        unsafe { s.store(place.as_mut_ptr(), scale) };
        most = s.max(s.max(scale, s.sub(zero, scale)), most);
        // Zero as long as all are finite, NaN from then on.
        finite = s.add(finite, s.mul(scale, zero));
    }
    let row = s.add(s.div(most, s.splat(quant::MULTIPLIER)), finite);
    let end = panel.len() - (2 - tile) * LANES * size_of::<f32>();
    // SAFETY: a panel ends with the scales of both tiles, from any address.
    unsafe { s.store(panel[end..].as_mut_ptr().cast(), row) };
    // Rows without a scale stay zero.
    let row = s.select_gt(row, zero, row, zero);
    for (block, target) in panel.chunks_exact_mut(form.block_bytes()).take(groups / 2).enumerate() {
        let mut halves = [[zero; GROUP]; 2];
        for (half, w) in halves.iter_mut().enumerate() {
            let group = 2 * block + half;
            *w = load_group(s, values, group);
            // SAFETY: sixteen scales, and room for sixteen multipliers.
            unsafe {
                let multiplier = quantize(s, w, s.load(scales[group * LANES..][..LANES].as_ptr()), row);
                let place = form.multiplier_place(tile * LANES, half);
                s.store_i8(target[place..][..LANES].as_mut_ptr().cast(), multiplier);
            }
        }
        // The byte of each feature is the low one of a whole number that is added to 1.5 * 2^23.
        let (sixteen, bias) = (s.splat(16.0), s.splat(8.0 + 8.0 * 16.0 + quant::ROUND));
        let mut numbers = [[0u32; LANES]; GROUP];
        for ((numbers, &low), &high) in numbers.iter_mut().zip(&halves[0]).zip(&halves[1]) {
            // SAFETY: sixteen numbers of four bytes.
            unsafe { s.store(numbers.as_mut_ptr().cast(), s.add(s.fma(high, sixteen, low), bias)) };
        }
        let lines = target[tile * form.tile_bytes()..].chunks_exact_mut(LINE);
        for (line, four) in lines.zip(numbers.chunks_exact(4)) {
            let units: [u32; LANES] = std::array::from_fn(|n| {
                four[0][n] & 255 | (four[1][n] & 255) << 8 | (four[2][n] & 255) << 16 | four[3][n] << 24
            });
            line.copy_from_slice(bytemuck::cast_slice(&units));
        }
    }
}

/// Group `group` of sixteen rows: a vector for each input feature, rows as lanes.
#[inline(always)]
fn load_group<S: Simd>(s: S, values: &[f32], group: usize) -> [S::V; quant::GROUP] {
    let mut w = [s.splat(0.0); quant::GROUP];
    for (i, part) in w.chunks_exact_mut(LANES).enumerate() {
        let mut square = [s.splat(0.0); LANES];
        for (n, v) in square.iter_mut().enumerate() {
            let at = n * (values.len() / LANES) + group * quant::GROUP + i * LANES;
            // SAFETY: sixteen elements of the row.
            *v = unsafe { s.load(values[at..at + LANES].as_ptr()) };
        }
        s.transpose(&mut square);
        part.copy_from_slice(&square);
    }
    w
}

/// A weight as a number in -8..=7.
#[inline(always)]
fn nibble<S: Simd>(s: S, w: S::V, inverse: S::V) -> S::V {
    let magic = s.splat(quant::ROUND);
    let t = s.sub(s.add(s.mul(w, inverse), magic), magic);
    s.max(s.select_gt(t, s.splat(7.0), s.splat(7.0), t), s.splat(-8.0))
}

/// [`quant::inverse`].
#[inline(always)]
fn inverse<S: Simd>(s: S, v: S::V) -> S::V {
    let (zero, inverse) = (s.splat(0.0), s.div(s.splat(1.0), v));
    s.select_gt(s.splat(f32::INFINITY), s.max(inverse, s.sub(zero, inverse)), inverse, zero)
}

#[inline(always)]
fn sum<S: Simd>(s: S, v: [S::V; 4]) -> S::V {
    s.add(s.add(v[0], v[1]), s.add(v[2], v[3]))
}

/// The scales that groups have by themselves, in sixteen lanes; NaN where a weight is not finite.
#[inline(always)]
fn group_scale<S: Simd>(s: S, w: &[S::V; quant::GROUP]) -> S::V {
    let zero = s.splat(0.0);
    let (mut largest, mut size, mut finite) = (zero, zero, zero);
    for &v in w {
        let magnitude = s.max(v, s.sub(zero, v));
        largest = s.select_gt(magnitude, size, v, largest);
        size = s.select_gt(magnitude, size, magnitude, size);
        finite = s.add(finite, s.mul(v, zero));
    }
    let (mut best_gain, mut best_scale, mut alive) = (zero, zero, zero);
    for steps in quant::STEPS {
        let inverse = s.div(s.splat(-steps), largest);
        // Zero up to the first factor that is not finite.
        alive = s.add(alive, s.mul(inverse, zero));
        let (mut products, mut squares) = ([zero; 4], [zero; 4]);
        for four in w.chunks_exact(4) {
            for ((&w, product), square) in four.iter().zip(&mut products).zip(&mut squares) {
                let t = nibble(s, w, inverse);
                *product = s.add(*product, s.mul(w, t));
                *square = s.add(*square, s.mul(t, t));
            }
        }
        let (product, square) = (sum(s, products), sum(s, squares));
        let scale = s.div(product, square);
        let gain = s.add(s.mul(scale, product), alive);
        best_scale = s.select_gt(gain, best_gain, scale, best_scale);
        best_gain = s.select_gt(gain, best_gain, gain, best_gain);
    }
    s.add(best_scale, finite)
}

/// The square errors of groups with these scales.
#[inline(always)]
fn error<S: Simd>(s: S, w: &[S::V; quant::GROUP], scale: S::V) -> S::V {
    let (zero, inverse) = (s.splat(0.0), inverse(s, scale));
    let mut sums = [zero; 4];
    for four in w.chunks_exact(4) {
        for (&w, sum) in four.iter().zip(&mut sums) {
            let left = s.fma(s.sub(zero, nibble(s, w, inverse)), scale, w);
            *sum = s.add(*sum, s.mul(left, left));
        }
    }
    sum(s, sums)
}

/// Leaves the integers of sixteen groups in `w` and returns their multipliers. `row` is zero for rows that have
/// no scale.
#[inline(always)]
fn quantize<S: Simd>(s: S, w: &mut [S::V; quant::GROUP], scale: S::V, row: S::V) -> S::V {
    let (zero, one, most) = (s.splat(0.0), s.splat(1.0), s.splat(quant::MULTIPLIER));
    let size = s.max(scale, s.sub(zero, scale));
    // At least one: also where there is no number.
    let low = s.max(s.floor(s.div(size, row)), one);
    let low = s.select_gt(low, most, most, low);
    let high = s.add(low, one);
    let high = s.select_gt(high, most, most, high);
    let signed = s.select_gt(scale, zero, row, s.sub(zero, row));
    let (first, second) = (error(s, w, s.mul(low, signed)), error(s, w, s.mul(high, signed)));
    let best = s.select_gt(first, second, high, low);
    let kept = s.select_gt(row, zero, s.select_gt(size, zero, best, zero), zero);
    let inverse = inverse(s, s.mul(best, signed));
    for w in w.iter_mut() {
        *w = s.select_gt(kept, zero, nibble(s, *w, inverse), zero);
    }
    s.select_gt(scale, zero, kept, s.sub(zero, kept))
}
