//! A headless Chromium, driven by its DevTools protocol over a pair of pipes (`--remote-debugging-pipe`): messages are JSON, each followed by a
//! zero byte. Everything that the page complains of is kept.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use base64::Engine as _;
use lapwing_lab::{Host, Process};
use serde_json::{Value, json};

/// How long the browser may take to answer.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Browser {
    process: Process,
    requests: File,
    answers: Receiver<Value>,
    next: u64,
    session: String,
    /// What the page complained of: errors, exceptions, violations of its policy.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    /// Starts it on `host` with one empty page.
    pub(crate) fn start(host: &Host, program: &str) -> Self {
        let dir = host.dir().join("browser");
        std::fs::create_dir_all(&dir).unwrap();
        let (requests, answers) = (dir.join("requests"), dir.join("answers"));
        for pipe in [&requests, &answers] {
            assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        // Opened for both, so that opening waits for nobody.
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let (request_pipe, mut answer_pipe) = (open(&requests), open(&answers));
        let mut command = host.command("sh");
        command.args([
            "-c",
            r#"program=$1 requests=$2 answers=$3; shift 3; exec "$program" "$@" 3<"$requests" 4>"$answers""#,
            "sh",
        ]);
        command.arg(program).args([&requests, &answers]);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--no-proxy-server",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", dir.join("profile").display())).arg("about:blank");
        command.env("HOME", &dir);
        let process = host.spawn("chromium", &mut command).unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut buffer, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
            while let Ok(count) = answer_pipe.read(&mut chunk) {
                buffer.extend_from_slice(&chunk[..count]);
                while let Some(end) = buffer.iter().position(|byte| *byte == 0) {
                    let message: Vec<u8> = buffer.drain(..=end).collect();
                    if sender.send(serde_json::from_slice(&message[..end]).unwrap()).is_err() {
                        return;
                    }
                }
            }
        });
        let mut browser = Self {
            process,
            requests: request_pipe,
            answers: receiver,
            next: 0,
            session: String::new(),
            complaints: Vec::new(),
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut request = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&request).unwrap();
        bytes.push(0);
        self.requests.write_all(&bytes).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.process.expect_running().unwrap();
            assert!(Instant::now() < deadline, "{method}: no answer within {PATIENCE:?}");
            let Ok(message) = self.answers.recv_timeout(Duration::from_millis(500)) else { continue };
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let bad = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                matches!(event["params"]["type"].as_str(), Some("error" | "warning" | "assert"))
            }
            Some("Log.entryAdded") => matches!(event["params"]["entry"]["level"].as_str(), Some("error" | "warning")),
            _ => false,
        };
        if bad {
            self.complaints.push(event["params"].to_string());
        }
    }

    pub(crate) fn go(&mut self, url: &str) {
        let went = self.call("Page.navigate", &json!({"url": url}));
        assert!(went["errorText"].is_null(), "{url}: {went}");
    }

    /// What an expression gives in the page.
    pub(crate) fn ask(&mut self, expression: &str) -> Value {
        self.try_ask(expression).unwrap_or_else(|thrown| panic!("{expression}: {thrown}"))
    }

    fn try_ask(&mut self, expression: &str) -> Result<Value, Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &params);
        if result["exceptionDetails"].is_null() { Ok(result["result"]["value"].clone()) } else { Err(result) }
    }

    /// Waits until an expression is true; gives up with what the page says by then.
    pub(crate) fn wait_for(&mut self, what: &str, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        // While the page is loaded there may be nothing to ask yet.
        while self.try_ask(expression) != Ok(true.into()) {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}; the page says:\n{}\n{:?}",
                self.ask("document.body.innerText"),
                self.complaints
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Presses and releases a key, as the keyboard does.
    pub(crate) fn press(&mut self, key: &str, code: u32, text: &str) {
        let params = json!({"key": key, "code": key, "windowsVirtualKeyCode": code});
        let mut down = params.clone();
        down["type"] = "keyDown".into();
        if !text.is_empty() {
            down["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", &down);
        let mut up = params;
        up["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", &up);
    }

    /// As a system in that scheme shows it.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        self.call(
            "Emulation.setEmulatedMedia",
            &json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    pub(crate) fn picture(&mut self, width: u32, height: u32) -> Vec<u8> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let shot = self.call("Page.captureScreenshot", &json!({"format": "png", "optimizeForSpeed": false}));
        base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// Ends it.
    pub(crate) fn close(mut self) {
        let end = json!({"id": 0, "method": "Browser.close"});
        let mut bytes = serde_json::to_vec(&end).unwrap();
        bytes.push(0);
        let _ = self.requests.write_all(&bytes);
        // Dropping the process kills what does not end by itself.
        let _ = self.process.wait(Duration::from_secs(10));
    }
}
