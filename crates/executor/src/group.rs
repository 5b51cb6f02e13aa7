//! How the ranks of a stage add what they have.
use crate::exchange::HostCommunicator;
use crate::split::Part;
use anyfleet_tensor::Result;
use std::any::Any;

/// A rank's end of a group.
pub(crate) enum End {
    /// Through the host's memory.
    Host(HostCommunicator),
    /// From device to device: a boxed `Communicator` of the rank's backend.
    Device(Box<dyn Any + Send>),
}

/// Ends for the ranks of a stage: from device to device where there is such a way, else through the host.
pub(crate) fn best(parts: &[Part]) -> Result<Vec<End>> {
    let Some(first) = parts.first().filter(|_| parts.len() > 1) else { return Ok(Vec::new()) };
    let devices: Vec<_> = parts.iter().map(|part| &part.device).collect();
    let ends = first.device.group(&devices, first.residual_elements())?;
    Ok(ends.unwrap_or_else(|| through_the_host(parts)))
}

/// Ends that meet in the host's memory.
pub(crate) fn through_the_host(parts: &[Part]) -> Vec<End> {
    HostCommunicator::group(parts.len()).into_iter().map(End::Host).collect()
}
