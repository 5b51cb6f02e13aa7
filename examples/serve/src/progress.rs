//! A bar on the terminal while a model is downloaded and loaded; nothing where there is no terminal.
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

fn clear(shown: Option<(String, ProgressBar)>) {
    if let Some((_, bar)) = shown {
        bar.finish_and_clear();
    }
}
