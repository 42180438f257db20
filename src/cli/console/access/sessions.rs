//! Who is logged in.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use uuid::Uuid;

const COOKIE: &str = "offramp_console";
/// How long a session lasts.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// The largest number of sessions. The oldest makes room for the next.
const SESSIONS_MAX: usize = 1_000;

/// The sessions of this process, by the random id in the cookie.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

struct Session {
    name: String,
    since: Instant,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session. Returns the value of `Set-Cookie`.
    pub(super) fn begin(&self, name: String, is_https: bool) -> String {
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.since.elapsed() < SESSION);
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.since).map(|(id, _)| id.clone());
            oldest.and_then(|id| sessions.remove(&id));
        }
        sessions.insert(id.clone(), Session { name, since: Instant::now() });
        let secure = if is_https { "; Secure" } else { "" };
        format!("{COOKIE}={id}; HttpOnly; SameSite=Lax; Path=/; Max-Age={}{secure}", SESSION.as_secs())
    }

    /// The name of the visitor whose cookie this is.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<String> {
        let id = session_id(headers)?;
        let sessions = self.lock();
        sessions.get(id).filter(|session| session.since.elapsed() < SESSION).map(|session| session.name.clone())
    }

    /// Ends the session of this cookie. Returns the value of `Set-Cookie`.
    pub(super) fn end(&self, headers: &HeaderMap) -> String {
        if let Some(id) = session_id(headers) {
            self.lock().remove(id);
        }
        format!("{COOKIE}=; HttpOnly; SameSite=Lax; Path=/; Max-Age=0")
    }
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|value| value.split(';')).find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_begin_end_and_make_room() {
        let sessions = Sessions::default();
        let cookie = |set: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, format!("a=b; {}", set.split(';').next().unwrap()).parse().unwrap());
            headers
        };
        let ann = cookie(&sessions.begin("ann".to_owned(), true));
        assert_eq!(sessions.find(&ann).as_deref(), Some("ann"));
        assert_eq!(sessions.find(&cookie("offramp_console=guessed")), None);
        sessions.end(&ann);
        assert_eq!(sessions.find(&ann), None);
        let first = cookie(&sessions.begin("first".to_owned(), false));
        for _ in 0..SESSIONS_MAX {
            sessions.begin("next".to_owned(), false);
        }
        assert_eq!((sessions.find(&first), sessions.lock().len()), (None, SESSIONS_MAX));
    }
}
