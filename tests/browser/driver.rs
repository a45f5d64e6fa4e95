//! A real browser: Debian's Chromium, driven by its own driver, as a person would use the console.
//!
//! Each scenario has a driver and a browser of its own, on a port of the kernel's choice; both end with
//! it. What a person waits for is waited for; what they see and hear is found by its name.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    str::FromStr,
};

use fantoccini::{
    Client, ClientBuilder, Locator, elements::Element, wd::WebDriverCompatibleCommand,
};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::world::eventually;

/// The driver's process, and all that it has started.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    fn start() -> Self {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is there: Debian's package chromium-driver");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("successfully on port ")?;
            rest.trim_end_matches('.').parse().ok()
        });
        Self { child, port: port.expect("the driver says its port") }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        Command::new("kill").args(["-9", "--", &group]).output().ok();
        self.child.wait().ok();
    }
}

/// A command of Chromium's own, or of its driver.
#[derive(Debug)]
struct Raw {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Raw {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, <Url as FromStr>::Err> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// A window of a browser.
pub struct Browser {
    client: Option<Client>,
    runtime: Runtime,
    _driver: Driver,
}

impl Browser {
    /// A new browser that shows a node's console.
    pub fn open(url: &str) -> Self {
        let driver = Driver::start();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
        ];
        let wish = json!({
            "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" },
        });
        let client = runtime.block_on(async {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            builder.capabilities(wish.as_object().unwrap().clone());
            builder.connect(&format!("http://127.0.0.1:{}", driver.port)).await
        });
        let browser = Self { client: Some(client.unwrap()), runtime, _driver: driver };
        browser.size(1280, 860);
        browser.goto(url);
        browser
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it is open until it is dropped")
    }

    pub fn goto(&self, url: &str) {
        self.runtime.block_on(self.client().goto(url)).unwrap();
    }

    /// What a script returns.
    pub fn js(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.runtime.block_on(self.client().execute(script, arguments)).unwrap()
    }

    fn raw(&self, path: &'static str, body: Value) -> Value {
        self.runtime.block_on(self.client().issue_cmd(Raw { path, body })).unwrap()
    }

    fn devtools(&self, command: &str, parameters: &Value) {
        self.raw("goog/cdp/execute", json!({ "cmd": command, "params": parameters }));
    }

    pub fn size(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// As on a system that is light or dark.
    pub fn scheme(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// What the browser complained about: broken policies, scripts that failed.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.raw("se/log", json!({ "type": "browser" }));
        let entries = entries.as_array().cloned().unwrap_or_default();
        let severe = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        let texts = severe.map(|entry| entry["message"].to_string());
        // What is refused is told to the person; the browser notes the status as well.
        texts.filter(|text| !text.contains("status of 4")).collect()
    }

    pub fn screenshot(&self) -> Vec<u8> {
        self.runtime.block_on(self.client().screenshot()).unwrap()
    }

    /// All that can be read on the page.
    pub fn text(&self) -> String {
        let text = self.js("return document.body.innerText", vec![]);
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a text can be read.
    pub fn see(&self, wanted: &str) {
        eventually(&format!("the console shows {wanted:?}"), || match self.text() {
            text if text.contains(wanted) => Ok(()),
            text => Err(text),
        });
    }

    /// Waits until a text can be read no more.
    pub fn miss(&self, unwanted: &str) {
        eventually(&format!("the console shows {unwanted:?} no more"), || match self.text() {
            text if text.contains(unwanted) => Err(text),
            _ => Ok(()),
        });
    }

    /// The text of what a selector finds, once it is there.
    pub fn text_of(&self, selector: &str) -> String {
        eventually(&format!("{selector} is there"), || {
            let found = self.js(
                "return document.querySelector(arguments[0])?.innerText",
                vec![selector.into()],
            );
            found.as_str().map(str::to_owned).ok_or_else(|| self.text())
        })
    }

    /// Presses the button or follows the link of a name, once it is there and can be pressed.
    pub fn click(&self, name: &str) {
        let fits =
            format!("(normalize-space(.)={name:?} and not(@aria-label)) or @aria-label={name:?}");
        let path = format!(
            "//dialog//button[{fits}] | //button[{fits}][not(ancestor::dialog)] | //a[{fits}] | //summary[{fits}] \
             | //nav//a[starts-with(normalize-space(.), {name:?})]"
        );
        eventually(&format!("{name:?} can be pressed"), || {
            let pressed = self.runtime.block_on(async {
                let found = self.client().find(Locator::XPath(&path)).await?;
                found.click().await
            });
            pressed.map_err(|error| format!("{error}\n{}", self.text()))
        });
    }

    fn field(&self, label: &str) -> Element {
        let path = format!("//*[@id=//label[normalize-space(.)={label:?}]/@for]");
        eventually(&format!("the field {label:?} is there"), || {
            let found = self.runtime.block_on(self.client().find(Locator::XPath(&path)));
            found.map_err(|error| format!("{error}\n{}", self.text()))
        })
    }

    /// Types into the field of a label, in place of what stands there.
    pub fn fill(&self, label: &str, text: &str) {
        let field = self.field(label);
        self.runtime.block_on(async {
            field.clear().await.unwrap();
            field.send_keys(text).await.unwrap();
        });
    }

    /// Presses keys where the focus is.
    pub fn keys(&self, keys: &str) {
        self.runtime.block_on(async {
            self.client().active_element().await.unwrap().send_keys(keys).await.unwrap();
        });
    }

    /// The name of what has the focus.
    pub fn focus(&self) -> String {
        let script = "const it = document.activeElement; return it.getAttribute('aria-label') \
            || it.labels?.[0]?.innerText || it.innerText || it.tagName";
        self.js(script, vec![]).as_str().unwrap_or_default().trim().to_owned()
    }

    /// Signs in with a token.
    pub fn sign_in(&self, token: &str) {
        self.fill("Token", token);
        self.click("Sign in");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(client) = self.client.take() {
            self.runtime.block_on(client.close()).ok();
        }
    }
}
