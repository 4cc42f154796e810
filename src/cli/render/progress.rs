//! The progress of a job: bars on a terminal, lines elsewhere, JSON lines for programs.

use super::{Terminal, value};
use crate::model::job::{Job, State};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Shows one job.
#[derive(Debug)]
pub struct Progress {
    face: Face,
    json: Option<Json>,
}

#[derive(Debug)]
enum Face {
    Quiet,
    Bar(ProgressBar, usize),
    Plain(Plain),
}

impl Progress {
    /// Bars if a person watches, lines if not, nothing if quiet; JSON lines to a file besides.
    pub fn new(terminal: &Terminal, quiet: bool, file: Option<Arc<File>>) -> Progress {
        let face = if quiet {
            Face::Quiet
        } else if terminal.interactive {
            Face::Bar(bar(), 0)
        } else {
            Face::Plain(Plain::default())
        };
        Progress { face, json: file.map(Json::start) }
    }

    /// Shows a state of the job.
    pub fn update(&mut self, job: &Job) {
        match &mut self.face {
            Face::Quiet => {}
            Face::Plain(plain) => {
                for line in plain.lines(job) {
                    super::note(&line);
                }
            }
            Face::Bar(bar, said) => {
                for text in job.messages.iter().skip(*said) {
                    bar.println(value(text));
                }
                *said = job.messages.len();
                bar.set_position((job.progress * 1000.0) as u64);
                bar.set_message(value(&detail(job)).into_owned());
            }
        }
        if let Some(json) = &mut self.json
            && !job.state.is_final()
        {
            json.snapshot("job", job);
        }
    }

    /// Shows the end.
    pub fn finish(&mut self, job: &Job) {
        self.clear();
        if let Some(json) = &mut self.json {
            json.snapshot("finished", job);
        }
    }

    /// A line besides the progress, even if that is quiet: it answers a key.
    pub fn note(&self, text: &str) {
        match &self.face {
            Face::Bar(bar, _) => bar.suspend(|| super::note(text)),
            Face::Quiet | Face::Plain(_) => super::note(text),
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Face::Bar(bar, _) = &self.face {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} [{bar:30}] {percent:>3} % {wide_msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    // Looks alive where a step has nothing to count.
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The step and how far it is.
fn detail(job: &Job) -> String {
    let mut text = if job.step.is_empty() { job.state.name().to_owned() } else { job.step.clone() };
    if job.bytes_total > 0 {
        text.push_str(&format!(" {}/{}", HumanBytes(job.bytes_done), HumanBytes(job.bytes_total)));
    } else if job.bytes_done > 0 {
        text.push_str(&format!(" {}", HumanBytes(job.bytes_done)));
    }
    if job.items_total > 0 {
        text.push_str(&format!(" {}/{}", job.items_done, job.items_total));
    }
    if job.parts.is_empty() && !job.current_item.is_empty() {
        text.push_str(&format!(" {}", job.current_item));
    }
    for (name, (done, total)) in job.parts.iter().take(SHOWN) {
        let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(0);
        // A digest is told from the others by its beginning.
        let name: String = name.trim_start_matches("sha256:").chars().take(12).collect();
        text.push_str(&format!("  {name} {percent} %"));
    }
    text
}

/// As many items on their way fit beside the rest of a line.
const SHOWN: usize = 3;

/// One line per step, quarter of a transfer and message, so that a log stays short.
#[derive(Debug, Default)]
struct Plain {
    step: String,
    queued: u32,
    quarter: u64,
    said: usize,
}

impl Plain {
    fn lines(&mut self, job: &Job) -> Vec<String> {
        let mut lines = Vec::new();
        if job.state == State::Queued {
            // Every job is queued when it is first seen; one that is still queued later waits.
            self.queued += 1;
            if self.queued == 2 {
                lines.push(format!("{}: waiting for other jobs", job.kind));
            }
        }
        // A daemon that came back has read the job from disk, where no step is.
        if job.step != self.step && !job.step.is_empty() {
            self.step.clone_from(&job.step);
            self.quarter = 0;
            lines.push(format!("{}: {}", job.kind, job.step));
        }
        let quarter = (job.bytes_done * 4).checked_div(job.bytes_total).unwrap_or(0);
        if quarter > self.quarter {
            self.quarter = quarter;
            let (done, total) = (HumanBytes(job.bytes_done), HumanBytes(job.bytes_total));
            lines.push(format!("{}: {} {done} of {total}", job.kind, job.step));
        }
        lines.extend(job.messages.iter().skip(self.said).map(|m| format!("{}: {m}", job.kind)));
        self.said = job.messages.len();
        lines.into_iter().map(|l| value(&l).into_owned()).collect()
    }
}

#[derive(Debug)]
struct Json(Option<Arc<File>>);

impl Json {
    fn start(file: Arc<File>) -> Json {
        let mut json = Json(Some(file));
        json.line(&start());
        json
    }

    fn snapshot(&mut self, kind: &str, job: &Job) {
        self.line(&snapshot(kind, job));
    }

    /// A reader that left is no reason to give up the job.
    fn line(&mut self, value: &serde_json::Value) {
        if let Some(file) = &self.0
            && let Err(error) = (&**file).write_all(format!("{value}\n").as_bytes())
        {
            tracing::debug!(%error, "nobody reads the progress");
            self.0 = None;
        }
    }
}

fn start() -> serde_json::Value {
    serde_json::json!({"type": "start", "version": 1})
}

fn snapshot(kind: &str, job: &Job) -> serde_json::Value {
    serde_json::json!({"type": kind, "job": job})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::{Event, Initiator, JobResult, Step};

    #[test]
    fn plain_progress_has_one_line_per_step_quarter_and_message() {
        let mut job = Job::new("1".into(), "upgrade", Initiator::default(), 1);
        let mut plain = Plain::default();
        let mut lines = plain.lines(&job);
        assert!(lines.is_empty(), "a job that starts at once does not wait");
        lines.extend(plain.lines(&job));
        for event in [
            Event::Started { at: 2 },
            Event::Step(Step::ResolveImage),
            Event::Step(Step::PullLayers),
            Event::Bytes { done: 5, total: 10 },
            Event::Message("layer 1 was here already".into()),
            Event::Bytes { done: 10, total: 10 },
            Event::Step(Step::StagePublish),
            Event::Finished { at: 3, outcome: Ok(JobResult::default()) },
        ] {
            job.apply(&event);
            lines.extend(plain.lines(&job));
        }
        assert_eq!(
            lines,
            [
                "upgrade: waiting for other jobs",
                "upgrade: resolve.image",
                "upgrade: pull.layers",
                "upgrade: pull.layers 5 B of 10 B",
                "upgrade: layer 1 was here already",
                "upgrade: pull.layers 10 B of 10 B",
                "upgrade: stage.publish",
            ]
        );
    }

    #[test]
    fn a_daemon_that_came_back_costs_no_line() {
        let mut job = Job::new("1".into(), "upgrade", Initiator::default(), 1);
        let mut plain = Plain::default();
        job.apply(&Event::Started { at: 2 });
        job.apply(&Event::Step(Step::PullLayers));
        assert_eq!(plain.lines(&job), ["upgrade: pull.layers"]);
        job.step.clear();
        assert!(plain.lines(&job).is_empty());
        job.messages.push("red \x1b[31m\nroot# ".into());
        assert_eq!(plain.lines(&job), ["upgrade: red \\u001b[31m\\u000aroot# "]);
    }

    #[test]
    fn json_lines_begin_with_start_and_end_with_finished() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let own = Arc::new(file.as_file().try_clone().unwrap());
        let mut job = Job::new("1".into(), "upgrade", Initiator::default(), 1);
        let quiet = Terminal { interactive: false, color: false };
        let mut progress = Progress::new(&quiet, true, Some(own));
        job.apply(&Event::Started { at: 2 });
        progress.update(&job);
        job.apply(&Event::Finished { at: 3, outcome: Ok(JobResult::default()) });
        progress.update(&job);
        progress.finish(&job);
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let types: Vec<_> = lines.iter().map(|l| l["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["start", "job", "finished"]);
        assert_eq!(text.lines().next(), Some(r#"{"type":"start","version":1}"#));
        assert_eq!(lines[2]["job"]["state"], "succeeded");
    }
}
