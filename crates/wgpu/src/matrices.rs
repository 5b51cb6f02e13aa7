//! Matrix units of an adapter.
use wgpu::CooperativeScalarType::{F16, F32};

/// Subgroups of a workgroup of `linear_matrix.wgsl`: `SQUARES`.
const SUBGROUPS: u32 = 4;
/// Bytes that a workgroup of it shares: two tiles of f16, the sums, and exponents.
const SHARED: u32 = 2 * 64 * 40 * 2 + 64 * 64 * 4 + 2 * 64 * 4;

/// How an adapter multiplies f16 with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    /// Rows, columns and depth of what a subgroup multiplies at once: 8 or 16.
    pub(crate) fragment: u32,
    /// Threads of a subgroup, at most.
    pub(crate) subgroup: u32,
}

impl Matrices {
    /// What the kernels need.
    pub(crate) const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        .union(wgpu::Features::SHADER_F16)
        .union(wgpu::Features::SUBGROUP);

    /// Those of an adapter, or why its products cannot run on them.
    pub(crate) fn of(adapter: &wgpu::Adapter) -> Result<Matrices, &'static str> {
        if !adapter.features().contains(Matrices::FEATURES) {
            return Err("its driver offers no matrix units");
        }
        let properties = adapter.cooperative_matrix_properties();
        let square = |side: &u32| {
            properties
                .iter()
                .any(|p| [p.m_size, p.n_size, p.k_size] == [*side; 3] && (p.ab_type, p.cr_type) == (F16, F32))
        };
        let Some(fragment) = [16, 8].into_iter().find(square) else {
            return Err("its matrix units multiply no squares of 8 or 16 f16 with sums in f32");
        };
        let (subgroup, limits) = (adapter.get_info().subgroup_max_size, adapter.limits());
        let threads = subgroup * SUBGROUPS;
        if threads > limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            || SHARED > limits.max_compute_workgroup_storage_size
        {
            return Err("its workgroups are too small for products on matrix units");
        }
        Ok(Matrices { fragment, subgroup })
    }
}
