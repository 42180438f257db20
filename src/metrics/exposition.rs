//! The page `/metrics`: what the recorder has, and what is asked at each request.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::process;

/// How often the recorder compacts its histograms.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The page `/metrics`. Clones share it.
#[derive(Clone)]
pub struct Exposition {
    recorder: PrometheusHandle,
    updates: Arc<Mutex<Vec<Update>>>,
}

/// Sets gauges before the page is rendered.
type Update = Box<dyn Fn() + Send + Sync>;

impl Exposition {
    pub(super) fn new(recorder: PrometheusHandle) -> Self {
        Self { recorder, updates: Arc::default() }
    }

    /// Calls `update` before each rendering, to set gauges that cost nothing to read.
    pub fn before_each(&self, update: impl Fn() + Send + Sync + 'static) {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(update));
    }

    /// The page, in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        for update in &*self.updates.lock().unwrap_or_else(PoisonError::into_inner) {
            update();
        }
        let mut page = self.recorder.render();
        process::render(&mut page);
        page
    }

    /// Compacts the histograms until `stop`, so that they do not grow while nobody reads the page.
    pub async fn keep_up(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.recorder.run_upkeep();
        }
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}
