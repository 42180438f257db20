//! A minimal client of headless Chromium's DevTools protocol.
//!
//! The protocol is JSON with a zero byte after each message, over two pipes. That needs no port that others could reach, and none of
//! the crates whose code, generated from the whole protocol, takes longer to compile than everything else here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{broadcast, oneshot};
use tokio::time::timeout;

use offramp_testkit::eventually;
use offramp_testkit::process;

/// The timeout of each operation, for a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of events that a subscriber may lag behind.
const EVENTS_MAX: usize = 1024;

/// No sandbox (root has none), no background requests, no state of earlier runs.
const FLAGS: [&str; 12] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
];

/// A running browser. Killed when dropped.
pub struct Browser {
    link: Arc<Link>,
    child: Child,
    _profile: TempDir,
}

/// The two pipes, with pending calls and event subscribers.
struct Link {
    to: Mutex<ChildStdin>,
    next_id: AtomicU64,
    answers: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    /// By session.
    events: Mutex<HashMap<String, broadcast::Sender<Value>>>,
}

impl Browser {
    /// Starts the browser, with its log in `log`.
    pub async fn start(executable: &Path, log: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads from descriptor 3 and writes to 4. The shell maps its standard input and output to them.
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(executable)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log).unwrap());
        let mut child = process::run(&mut shell, Command::spawn).unwrap();
        let link = Arc::new(Link {
            to: Mutex::new(child.stdin.take().unwrap()),
            next_id: AtomicU64::new(1),
            answers: Mutex::default(),
            events: Mutex::default(),
        });
        let from = child.stdout.take().unwrap();
        std::thread::spawn({
            let link = Arc::clone(&link);
            move || link.read(from)
        });
        let browser = Self { link, child, _profile: profile };
        let version = browser.link.call(None, "Browser.getVersion", json!({})).await;
        println!("{}", version["product"].as_str().unwrap());
        browser
    }

    /// Opens an empty page.
    pub async fn page(&self) -> Page {
        let target = self.link.call(None, "Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = target["targetId"].as_str().unwrap().to_owned();
        let attached =
            self.link.call(None, "Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await;
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let (events, _) = broadcast::channel(EVENTS_MAX);
        self.link.events.lock().unwrap().insert(session.clone(), events);
        let page = Page { link: Arc::clone(&self.link), session, target };
        page.call("Page.enable", json!({})).await;
        page.call("Runtime.enable", json!({})).await;
        page
    }

    /// Saves downloads in this folder.
    pub async fn keep_downloads_in(&self, folder: &Path) {
        let params = json!({ "behavior": "allow", "downloadPath": folder });
        self.link.call(None, "Browser.setDownloadBehavior", params).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Link {
    fn read(&self, from: ChildStdout) {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            let message: Value = serde_json::from_slice(&message).unwrap();
            if let Some(id) = message["id"].as_u64() {
                if let Some(waiting) = self.answers.lock().unwrap().remove(&id) {
                    drop(waiting.send(message));
                }
            } else if let Some(events) = self.events.lock().unwrap().get(message["sessionId"].as_str().unwrap_or("")) {
                drop(events.send(message));
            }
        }
        // Pending calls fail now that the browser has exited.
        self.answers.lock().unwrap().clear();
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.answers.lock().unwrap().insert(id, answer);
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.lock().unwrap().write_all(&bytes).expect("Chromium has ended; see chromium.log");
        let mut answer = timeout(PATIENCE, answered)
            .await
            .unwrap_or_else(|_| panic!("{method}: no answer from Chromium within {PATIENCE:?}"))
            .unwrap_or_else(|_| panic!("{method}: Chromium has ended; see chromium.log"));
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].take()
    }
}

/// A tab.
#[derive(Clone)]
pub struct Page {
    link: Arc<Link>,
    session: String,
    target: String,
}

/// The response to a page's request.
pub enum Answer {
    /// A body with its media type.
    Content(&'static str, Vec<u8>),
    /// A network error.
    Nothing,
}

impl Page {
    /// Calls a method of the protocol.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        self.link.call(Some(&self.session), method, params).await
    }

    /// Subscribes to the page's events.
    fn events(&self) -> broadcast::Receiver<Value> {
        self.link.events.lock().unwrap()[&self.session].subscribe()
    }

    /// Navigates to a URL, and waits for the load event.
    pub async fn open(&self, url: &str) {
        let mut events = self.events();
        let gone = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(gone["errorText"].is_null(), "{url}: {}", gone["errorText"]);
        self.wait(&mut events, "Page.loadEventFired").await;
    }

    async fn wait(&self, events: &mut broadcast::Receiver<Value>, method: &str) {
        let waiting = async { while events.recv().await.unwrap()["method"] != method {} };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{method}: not seen within {PATIENCE:?}"));
    }

    /// Intercepts all requests of the page, so that none reaches the network.
    pub async fn answer_requests(&self, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) {
        let mut events = self.events();
        self.call("Fetch.enable", json!({ "patterns": [{ "urlPattern": "*" }] })).await;
        let page = self.clone();
        tokio::spawn(async move {
            while let Ok(mut event) = events.recv().await {
                if event["method"] != "Fetch.requestPaused" {
                    continue;
                }
                let id = event["params"]["requestId"].take();
                match answer(event["params"]["request"]["url"].as_str().unwrap()) {
                    Answer::Content(media_type, bytes) => {
                        let headers = json!([{ "name": "Content-Type", "value": media_type }]);
                        let body = BASE64.encode(bytes);
                        let params =
                            json!({ "requestId": id, "responseCode": 200, "responseHeaders": headers, "body": body });
                        page.call("Fetch.fulfillRequest", params).await;
                    }
                    Answer::Nothing => {
                        let params = json!({ "requestId": id, "errorReason": "InternetDisconnected" });
                        page.call("Fetch.failRequest", params).await;
                    }
                }
            }
        });
    }

    /// Collects from now on what the browser's console shows as an error or a warning. Left out is that a page itself was answered with
    /// an error status, as a page that is not found should be.
    pub async fn complaints(&self) -> Arc<Mutex<Vec<String>>> {
        let mut events = self.events();
        self.call("Log.enable", json!({})).await;
        let complaints = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn({
            let complaints = Arc::clone(&complaints);
            async move {
                loop {
                    match events.recv().await {
                        Ok(event) => complaints.lock().unwrap().extend(complaint(&event)),
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            }
        });
        complaints
    }

    /// Evaluates a JavaScript expression. Promises are awaited.
    pub async fn evaluate(&self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression:.200}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        eventually(expression, || async { (self.evaluate(expression).await == true).then_some(()) }).await;
    }

    /// Clicks the middle of an element with the mouse; of one that is broken into lines, of its first line.
    pub async fn click(&self, selector: &str) {
        let middle = self
            .evaluate(&format!(
                "(() => {{
                    const element = document.querySelector(`{selector}`);
                    element.scrollIntoView({{ block: 'center' }});
                    const box = element.getClientRects()[0];
                    return [box.x + box.width / 2, box.y + box.height / 2];
                }})()"
            ))
            .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", click).await;
        }
    }

    /// Presses and releases a key: `Tab`, `Enter`, or a space.
    pub async fn press(&self, key: &str) {
        let (code, number, text) = match key {
            "Tab" => ("Tab", 9, None),
            "Enter" => ("Enter", 13, Some("\r")),
            " " => ("Space", 32, Some(" ")),
            _ => panic!("{key}: an unknown key"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut press = json!({ "type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number });
            if let (Some(text), "keyDown") = (text, kind) {
                press["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", press).await;
        }
    }

    /// Types into the focused element.
    pub async fn insert(&self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Sets the size of the window in CSS pixels, the device scale factor, and mobile emulation.
    pub async fn resize(&self, width: u32, height: u32, scale: u32, mobile: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets the preferred color scheme and the medium, `screen` or `print`.
    pub async fn emulate(&self, scheme: Scheme, medium: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme.as_str() }]);
        self.call("Emulation.setEmulatedMedia", json!({ "media": medium, "features": features })).await;
    }

    /// Makes this the tab that a person would see.
    pub async fn bring_to_front(&self) {
        self.call("Page.bringToFront", json!({})).await;
    }

    /// A screenshot of the whole page as PNG. A tab with frames must be in front: behind another one, frames may never be drawn.
    pub async fn screenshot(&self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true })).await;
        BASE64.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// The printed page as PDF.
    pub async fn pdf(&self) -> Vec<u8> {
        let pdf = self.call("Page.printToPDF", json!({ "printBackground": true })).await;
        BASE64.decode(pdf["data"].as_str().unwrap()).unwrap()
    }

    pub async fn close(self) {
        self.link.call(None, "Target.closeTarget", json!({ "targetId": self.target })).await;
        self.link.events.lock().unwrap().remove(&self.session);
    }
}

/// What an event says that the console shows as an error or a warning.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Log.entryAdded" => {
            let entry = &params["entry"];
            let is_status = entry["source"] == "network" && entry["text"].as_str()?.contains("with a status of 4");
            let is_bad = matches!(entry["level"].as_str()?, "error" | "warning") && !is_status;
            is_bad.then(|| format!("the browser's console: {}", entry["text"].as_str().unwrap_or_default()))
        }
        "Runtime.consoleAPICalled" if matches!(params["type"].as_str()?, "error" | "warning" | "assert") => {
            Some(format!("the browser's console: {}", params["args"]))
        }
        "Runtime.exceptionThrown" => Some(format!("an exception: {}", params["exceptionDetails"])),
        _ => None,
    }
}

/// Light or dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Light,
    Dark,
}

impl Scheme {
    pub const ALL: [Self; 2] = [Self::Light, Self::Dark];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}
