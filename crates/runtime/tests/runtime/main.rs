//! Tests of the runtime on the null executor, through its public interface.
mod common;
mod constraint;
mod null;
mod schedules;
mod scheduling;
mod sharing;
mod text;
