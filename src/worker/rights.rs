//! Watches whether the database user has every right that a worker needs, so that a missing one is known before it is needed.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::advice;
use crate::health::ReadyHandle;
use crate::store::Store;

/// How often to look while nothing is missing: rights change rarely.
const CHECK_EVERY: Duration = Duration::from_secs(300);
/// How often to look while a right is missing.
const CHECK_AGAIN_EVERY: Duration = Duration::from_secs(5);

/// Checks until `stop`. While a right is missing, `ready` is not ready and names it; the log names it once.
pub async fn keep_checking(store: Store, ready: ReadyHandle, stop: CancellationToken) {
    let checking = async {
        let mut reported = None;
        ready.ready();
        loop {
            let rights = store.user_rights().await;
            // An error is reported by whatever needs the database.
            let is_unknown = rights.is_err();
            if let Ok(rights) = rights {
                let missing: Vec<String> = rights.missing().iter().map(ToString::to_string).collect();
                let problem = (!missing.is_empty()).then(|| {
                    let user = rights.user.as_deref().unwrap_or_default();
                    format!("the database user {user} lacks rights: {}", missing.join(", "))
                });
                match &problem {
                    Some(problem) => ready.not_ready(problem),
                    None => ready.ready(),
                }
                if problem != reported {
                    if let Some(problem) = &problem {
                        tracing::error!("{problem} ({})", advice::RIGHTS);
                    } else {
                        tracing::info!("the database user has all rights again");
                    }
                    reported = problem;
                }
            }
            sleep(if reported.is_some() || is_unknown { CHECK_AGAIN_EVERY } else { CHECK_EVERY }).await;
        }
    };
    // Never ends by itself.
    stop.run_until_cancelled(checking).await;
}
