//! Causal attention over pages of latents: [`AttentionCase`] where it has one cache.
use super::attention::{AttentionCase, Host};
use crate::case::{OpCase, Selection, Types};
use crate::expect::{Expected, Tolerance};
use crate::rng::Rng;
use crate::stage::{Placement, Staged};
use anyfleet_tensor::{Backend, Caps, Result};

/// Parameters of one case, with [`AttentionCase::latent`].
#[derive(Clone, Debug)]
pub struct LatentAttentionCase(pub AttentionCase);

impl OpCase for LatentAttentionCase {
    const OP: &'static str = "latent_attention";
    type Host = Host;

    fn types(&self) -> Types {
        OpCase::types(&self.0)
    }
    fn rows(&self) -> usize {
        OpCase::rows(&self.0)
    }
    fn padding(&self) -> usize {
        OpCase::padding(&self.0)
    }
    fn draw(&self, rng: &mut Rng) -> Host {
        self.0.draw(rng)
    }
    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        self.0.stage(backend, host, selection, placement)
    }
    fn rounded(&self, host: Host, caps: &Caps, rows: usize) -> Host {
        self.0.rounded(host, caps, rows)
    }
    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        self.0.expect(host, selection)
    }
    fn tolerance(&self) -> Tolerance {
        self.0.tolerance()
    }
}
