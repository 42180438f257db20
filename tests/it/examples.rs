//! The examples in the documentation work: every code block marked `<!-- tried: NAME -->` is saved under that name and run against
//! a worker. The name says what the example does: `listen…` prints events until it is killed, `simulate…` needs no server, and all
//! others send a command.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bson::doc;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Confirmation};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::cli::succeeds;
use offramp_testkit::process;
use offramp_testkit::rabbit::amqp_url;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp, program};
use offramp_testkit::{eventually, repository, setting};

/// A code block of a documentation page.
struct Example {
    page: PathBuf,
    /// The file name. Its extension selects the interpreter.
    name: String,
    code: String,
}

impl Example {
    fn find() -> Vec<Self> {
        let repository = repository();
        let mut pages = vec![repository.join("README.md")];
        let mut folders = vec![repository.join("docs")];
        while let Some(folder) = folders.pop() {
            for path in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "md") {
                    pages.push(path);
                }
            }
        }
        pages.sort();
        pages.iter().flat_map(|page| Self::on(page)).collect()
    }

    fn on(page: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(page).unwrap();
        let (mut examples, mut marked, mut code) = (Vec::new(), None, None::<String>);
        for event in Parser::new(&text) {
            match event {
                Event::Html(html) => {
                    let name = html.trim().strip_prefix("<!-- tried: ").and_then(|html| html.strip_suffix(" -->"));
                    marked = name.map(str::to_owned).or(marked);
                }
                Event::Start(Tag::CodeBlock(_)) => code = Some(String::new()),
                Event::Text(text) => code.iter_mut().for_each(|code| code.push_str(&text)),
                Event::End(TagEnd::CodeBlock) => {
                    if let (Some(name), Some(code)) = (marked.take(), code.take()) {
                        examples.push(Self { page: page.to_owned(), name, code });
                    }
                }
                _ => {}
            }
        }
        examples
    }

    /// Runs it where a reader would: a shell script in the repository, anything else in a folder of its own.
    fn command(&self, folder: &Path, bed: &TestBed) -> Command {
        let file = folder.join(&self.name);
        std::fs::write(&file, &self.code).unwrap();
        let extension = file.extension().unwrap_or_default().to_string_lossy().into_owned();
        let repository = repository();
        let (interpreter, folder): (&[&str], _) = match extension.as_str() {
            "py" => (&["python3"], folder),
            // Node resolves modules next to the file, where a reader has installed them.
            "mjs" => (&["bash", "-euc", "ln -s \"$NODE_PATH\" node_modules; exec node \"$0\""], folder),
            "sh" => (&["bash", "-euo", "pipefail"], repository),
            other => panic!("{}: no program for .{other}", self.page.display()),
        };
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(repository.join("scripts/services"));
        command
            .arg("with-clients")
            .args(interpreter)
            .arg(file)
            .current_dir(folder)
            .env("PATH", format!("{}:{path}", program().parent().unwrap().display()))
            .env("OFFRAMP_AMQP_URL", amqp_url())
            .env("OFFRAMP_MONGODB_URL", &bed.mongodb_url)
            .env("OFFRAMP_PREFIX", &bed.prefix)
            .env("SERVICES_RABBITMQ_ADMIN", setting("SERVICES_RABBITMQ_ADMIN", "http://127.0.0.1:15672"));
        command
    }
}

/// A test bed with the example documents and a running worker.
async fn bed_with_worker(folder: &Path) -> (TestBed, WorkerProcess) {
    let bed = TestBed::new("example").await;
    let documents = repository().join("schemas/examples/documents.jsonl");
    succeeds(&mut offramp(&bed), &["init"], "");
    succeeds(&mut offramp(&bed), &["import", documents.to_str().unwrap()], "");
    let worker = WorkerProcess::start(&bed, &format!("file://{}", folder.join("emails").display())).await;
    (bed, worker)
}

/// Runs an example that ends by itself, and waits until its command is applied.
async fn check_sender(example: &Example) {
    let folder = tempfile::tempdir().unwrap();
    let (bed, worker) = bed_with_worker(folder.path()).await;
    let mut command = example.command(folder.path(), &bed);
    let output = tokio::task::spawn_blocking(move || process::run(&mut command, Command::output).unwrap());
    let Output { status, stdout, stderr } = output.await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{} in {}: {status}\n{said}", example.name, example.page.display());
    if !example.name.starts_with("simulate") {
        applied(&example.name, &bed).await;
    }
    worker.stop().await;
    bed.remove().await;
}

/// Waits until a document has applied the example's command.
async fn applied(example: &str, bed: &TestBed) {
    eventually(&format!("a document that has applied what {example} sent"), || async {
        assert_eq!(bed.take("dead-letters").await.map(|(body, _)| String::from_utf8(body)), None, "{example}");
        for collection in ["subscriptions", "accounts"] {
            let applied = doc! { "applied.0": { "$exists": true } };
            if bed.collection(collection).find_one(applied).await.unwrap().is_some() {
                return Some(());
            }
        }
        None
    })
    .await;
}

/// Runs an example that prints events, and waits for an event in its output.
async fn check_listener(example: &Example) {
    let folder = tempfile::tempdir().unwrap();
    let (bed, worker) = bed_with_worker(folder.path()).await;
    let mut command = tokio::process::Command::from(example.command(folder.path(), &bed));
    let mut listener = command.env("PYTHONUNBUFFERED", "1").stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let event = "subscription.cancellation-scheduled";
    // Events published before the queue is bound are lost.
    eventually("a queue that takes events", || async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = format!("{}.events", bed.prefix);
        let body = format!(r#"{{"type": "{event}", "id": "an-event", "data": {{}}}}"#);
        let published = bed.channel.basic_publish(
            exchange.as_str().into(),
            event.into(),
            options,
            body.as_bytes(),
            BasicProperties::default(),
        );
        matches!(published.await.unwrap().await.unwrap(), Confirmation::Ack(None)).then_some(())
    })
    .await;
    let heard = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(event) {
                return true;
            }
        }
        false
    };
    let heard = tokio::time::timeout(Duration::from_secs(60), heard).await.unwrap_or(false);
    assert!(heard, "{} in {} printed no event", example.name, example.page.display());
    drop(listener.kill().await);
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_in_the_documentation_work() {
    let examples = Example::find();
    for extension in ["py", "mjs", "sh"] {
        assert!(examples.iter().any(|example| example.name.ends_with(extension)), "no example in .{extension}");
    }
    for example in &examples {
        if example.name.starts_with("listen") {
            check_listener(example).await;
        } else {
            check_sender(example).await;
        }
    }
}
