// What the kernels of `linear` share: their parameters, and what happens to a sum once all of it is there. Each has a
// function `sum_of`: the sum over K of a lane of a panel for row `r` of the workgroup.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    steps: u32,
    // The part's first lane, and output features of the whole matrix.
    first: u32,
    total: u32,
    gated: u32,
    function: u32,
    multipliers: u32,
    scales: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
    bias: u32,
    residual: u32,
    residual_stride: u32,
    // Panels of each matrix.
    panels: u32,
#if EXPERTS
    // Experts of the part, of `stack`.
    first_expert: u32,
    experts: u32,
    stack: u32,
    offsets: u32,
    hits: u32,
    most_hits: u32,
    index: u32,
    x_rows: u32,
#endif
#if HEADS
    // The part's first head, elements from one head to the next, and runs of ROWS rows of a head.
    first_head: u32,
    x_head: u32,
    out_head: u32,
    runs: u32,
#endif
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(6) var<storage, read> residual: array<f32>;
#endif

// A sum with scale and bias.
fn total(panel: u32, r: u32, lane: u32, feature: u32) -> f32 {
    var sum = sum_of(panel, r, lane);
    if FORMAT == Q8 || FORMAT == Q4 {
        let i = panel * LANES + lane;
        sum = rounded(sum * bitcast<f32>(weight[p.scales + i / 4u][i % 4u]));
    }
#if BIAS
    sum += bias[p.bias + feature];
#endif
    return sum;
}

#if !HEADS
fn out_first(row: u32) -> u32 {
    return p.out + row * p.out_stride;
}
#endif

fn finish(panel: u32, row: u32, r: u32, lane: u32) {
    // Matrices lie one after the other.
    let own = panel % p.panels;
    var feature = p.first + own * LANES + lane;
    if p.gated != 0u {
        feature = (p.first / LANES + own) * (LANES / 2u) + lane % (LANES / 2u);
        if feature >= p.total / 2u {
            return;
        }
        if lane >= LANES / 2u {
            feature += p.total / 2u;
        }
    }
    if feature >= p.total {
        return;
    }
#if ACTIVATION
    if lane < LANES / 2u {
        let gate = total(panel, r, lane, feature);
        let up = total(panel, r, lane + LANES / 2u, feature + p.total / 2u);
        out[out_first(row) + feature] = activated(p.function, gate) * up;
    }
#else
    var value = total(panel, r, lane, feature);
    let place = out_first(row) + feature;
#if RESIDUAL
    value += residual[p.residual + row * p.residual_stride + feature];
#endif
#if IN_PLACE
    value += out[place];
#endif
    out[place] = value;
#endif
}
