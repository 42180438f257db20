//! The changes that visitors make: each runs in the background, is logged with who made it, and shows its progress and its end.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::response::{IntoResponse, Redirect, Response};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use offramp::clock;

use super::html::{ago, number};

/// The number of changes that are remembered.
const CHANGES_MAX: usize = 50;

/// The longest description of a change, in characters: parts of it come from forms.
const WHAT_CHARS_MAX: usize = 300;

/// The changes since the console was started, newest first.
#[derive(Default)]
pub struct Changes {
    next_id: AtomicU64,
    all: Mutex<VecDeque<Arc<Change>>>,
}

/// A change.
pub struct Change {
    pub id: u64,
    pub visitor: String,
    /// What was asked for: "Replay 12 dead letters".
    pub what: String,
    pub at: DateTime<Utc>,
    /// The page to go back to.
    pub back: String,
    looked_at: AtomicU64,
    total: AtomicU64,
    end: Mutex<Option<End>>,
}

/// How a change ended.
#[derive(Clone)]
pub struct End {
    pub outcome: Outcome,
    /// What was done, and what was not and why.
    pub sentences: Vec<String>,
    at: DateTime<Utc>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Something that was asked for was not done.
    Incomplete,
    Failed,
    /// The console was stopped.
    Interrupted,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Change {
    pub fn progress(&self, looked_at: u64, total: u64) {
        self.looked_at.store(looked_at, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub fn end(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records and logs the end, unless it has ended already.
    fn finish(&self, outcome: Outcome, sentences: Vec<String>) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_some() {
            return;
        }
        let (visitor, change, outcome_name) = (self.visitor.as_str(), self.id, outcome.as_str());
        let result = sentences.join(" ");
        if outcome == Outcome::Done {
            tracing::info!(visitor, change, outcome = outcome_name, "console: {}: {result}", self.what);
        } else {
            tracing::warn!(visitor, change, outcome = outcome_name, "console: {}: {result}", self.what);
        }
        *end = Some(End { outcome, sentences, at: clock::now() });
    }

    /// The state as a badge.
    fn badge(&self) -> Markup {
        match self.end() {
            Some(end) if end.outcome == Outcome::Done => html! { span.badge.good { "done" } },
            Some(end) => html! { span.badge.bad { (end.outcome.as_str()) } },
            None => html! { span.badge.busy { "running" } },
        }
    }

    /// What can be said about it now.
    pub fn state(&self) -> Markup {
        let end = self.end();
        let (looked_at, total) = (self.looked_at.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        html! {
            p { (self.badge()) " Asked for by " strong { (self.visitor) } ", " (ago(self.at)) "." }
            @match end {
                Some(end) => { @for sentence in &end.sentences { p { (sentence) } } p.hint { "Ended " (ago(end.at)) "." } }
                None if total > 0 => {
                    p { progress value=(looked_at) max=(total) aria-label="Progress" {} " " (number(looked_at)) " of " (number(total)) " looked at" }
                }
                None => { p { "It has just begun." } }
            }
        }
    }
}

/// Text from a form as one line of the log.
fn one_line(text: &str) -> String {
    text.chars().take(WHAT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Changes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Change>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a change in the background, and leads the visitor to its page. It goes on if they close the browser.
    pub fn begin<F>(&self, visitor: &str, what: &str, back: String, make: impl FnOnce(Arc<Change>) -> F) -> Response
    where
        F: Future<Output = (Outcome, Vec<String>)> + Send + 'static,
    {
        let change = Arc::new(Change {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            visitor: visitor.to_owned(),
            what: one_line(what),
            at: clock::now(),
            back,
            looked_at: AtomicU64::new(0),
            total: AtomicU64::new(0),
            end: Mutex::new(None),
        });
        tracing::info!(visitor, change = change.id, "console: {}", change.what);
        let making = make(Arc::clone(&change));
        let running = Arc::clone(&change);
        tokio::spawn(async move {
            // A task of its own, so that a bug in it ends the change too.
            let (outcome, sentences) = tokio::spawn(making).await.unwrap_or_else(|_| {
                (Outcome::Failed, vec!["Internal error (bug): the change ended unexpectedly.".to_owned()])
            });
            running.finish(outcome, sentences);
        });
        let id = change.id;
        let mut all = self.lock();
        all.push_front(change);
        all.truncate(CHANGES_MAX);
        Redirect::to(&format!("/changes/{id}")).into_response()
    }

    /// Ends the changes that still run in the log: the console is being stopped, and they stop with it.
    pub fn interrupt(&self) {
        for change in self.lock().iter() {
            let looked_at = number(change.looked_at.load(Ordering::Relaxed));
            let sentence = format!("The console was stopped; looked at so far: {looked_at}. The rest is as it was.");
            change.finish(Outcome::Interrupted, vec![sentence]);
        }
    }

    pub fn find(&self, id: u64) -> Option<Arc<Change>> {
        self.lock().iter().find(|change| change.id == id).cloned()
    }

    /// The newest changes, as a list.
    pub fn newest(&self, changes_max: usize) -> Markup {
        let newest: Vec<_> = self.lock().iter().take(changes_max).cloned().collect();
        html! {
            @if newest.is_empty() { p.hint { "None since the console was started." } }
            @else {
                ul.changes {
                    @for change in newest {
                        li { (change.badge()) " " a href={ "/changes/" (change.id) } { (change.what) } " by " (change.visitor) ", " (ago(change.at)) }
                    }
                }
            }
        }
    }
}
