//! Bars on the terminal while a model is downloaded and loaded or a device is checked; nothing where there is no terminal.
use anyfleet::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::Mutex;

/// What is being shown, and its bar.
#[derive(Default)]
pub(crate) struct LoadBar {
    shown: Mutex<Option<(String, ProgressBar)>>,
}

impl LoadBar {
    pub fn update(&self, progress: Progress) {
        let (what, style, done, total) = match progress {
            Progress::Download { file, done, total } => {
                (format!("downloading {file}"), "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}", done, total)
            }
            Progress::Weights { done, total } => {
                ("loading weights".to_owned(), "{msg} [{bar:30}] {percent}%", done, Some(total))
            }
            _ => return,
        };
        // A poisoned lock would be a panic while drawing, and the load is worth more than the bar.
        let Ok(mut shown) = self.shown.lock() else { return };
        if shown.as_ref().is_none_or(|(current, _)| *current != what) {
            clear(shown.take());
            let bar = ProgressBar::new(total.unwrap_or(0));
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.clone());
            *shown = Some((what, bar));
        }
        if let Some((_, bar)) = shown.as_ref() {
            bar.set_length(total.unwrap_or(done));
            bar.set_position(done);
        }
    }

    pub fn finish(&self) {
        if let Ok(mut shown) = self.shown.lock() {
            clear(shown.take());
        }
    }
}

/// Cases of a check, one after the other.
pub(crate) struct CheckBar(ProgressBar);

impl CheckBar {
    pub fn new(device: &str) -> CheckBar {
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("checking {prefix}: {pos} cases, {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_prefix(device.to_owned());
        CheckBar(bar)
    }

    pub fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.inc(1);
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn clear(shown: Option<(String, ProgressBar)>) {
    if let Some((_, bar)) = shown {
        bar.finish_and_clear();
    }
}
