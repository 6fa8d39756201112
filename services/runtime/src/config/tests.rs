//! Precedence, text from outside, and errors that name key and place.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    listen: SocketAddr,
    servers: Vec<String>,
    limits: Limits,
    mode: Mode,
    token: Secret,
    metrics: MetricsConfig,
    telemetry: TelemetryConfig,
    drain: DrainConfig,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    sessions: u32,
    ports: Vec<u16>,
    #[serde(with = "humantime_serde")]
    grace: Option<Duration>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Open,
    Closed {
        key: String,
    },
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7000".parse().unwrap(),
            servers: vec!["http://default".into()],
            limits: Limits { sessions: 10, ..Limits::default() },
            mode: Mode::Open,
            token: Secret::default(),
            metrics: MetricsConfig::loopback(9400),
            telemetry: TelemetryConfig::default(),
            drain: DrainConfig::default(),
        }
    }
}

impl Settings for Sample {
    type Meant = u32;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<u32, ConfigError> {
        match self.limits.sessions {
            0 => Err(ConfigError::value("limits.sessions", "must be at least 1")),
            sessions => Ok(sessions),
        }
    }
}

fn env(pairs: &[(&str, &str)]) -> Spec {
    let env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Spec { env, ..Spec::default() }
}

fn set(texts: &[&str]) -> Spec {
    Spec { set: texts.iter().map(|text| (*text).to_owned()).collect(), ..Spec::default() }
}

fn file(text: &str) -> (tempfile::NamedTempFile, Spec) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let spec = Spec { file: Some(file.path().to_owned()), ..Spec::default() };
    (file, spec)
}

fn read(spec: &Spec) -> Sample {
    load::<Sample>(spec).unwrap().value
}

fn error(spec: &Spec) -> String {
    load::<Sample>(spec).unwrap_err().to_string()
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let (_file, mut spec) = file("listen = '127.0.0.1:1'\n[limits]\nsessions = 1\nports = [1, 2]\n");
    assert_eq!(read(&spec).limits.sessions, 1);
    assert_eq!(read(&spec).servers, ["http://default"]);
    spec.env = env(&[("P2PSB_LIMITS__SESSIONS", "2")]).env;
    assert_eq!(read(&spec).limits.sessions, 2);
    spec.set = vec!["limits.sessions=3".into()];
    assert_eq!(read(&spec).limits.sessions, 3);
    spec.flags = vec![("--sessions".into(), "limits.sessions".into(), "4".into())];
    let sample = read(&spec);
    assert_eq!((sample.limits.sessions, sample.limits.ports, sample.listen.port()), (4, vec![1, 2], 1));
}

#[test]
fn a_section_that_is_given_in_part_keeps_the_services_own_defaults() {
    let sample = read(&set(&["limits.grace=3s", "drain.deadline=1m"]));
    assert_eq!((sample.limits.sessions, sample.limits.grace), (10, Some(Duration::from_secs(3))));
    assert_eq!(sample.drain.deadline, Duration::from_secs(60));
    assert_eq!(sample.metrics.listen.unwrap().port(), 9400);
}

#[test]
fn text_becomes_what_the_key_is() {
    let sample = read(&env(&[
        ("P2PSB_LISTEN", "[::1]:7400"),
        ("P2PSB_SERVERS", "['https://a:7400', 'https://b:7400']"),
        ("P2PSB_LIMITS__PORTS", "80, 443"),
        ("P2PSB_MODE", "{ closed = { key = 'k' } }"),
        ("P2PSB_METRICS__LISTEN", "off"),
        ("P2PSB_TELEMETRY__SAMPLE_RATIO", "0.5"),
        ("P2PSB_TELEMETRY__LOG__FORMAT", "json"),
    ]));
    assert_eq!(sample.listen, "[::1]:7400".parse().unwrap());
    assert_eq!(sample.servers, ["https://a:7400", "https://b:7400"]);
    assert_eq!(sample.limits.ports, [80, 443]);
    assert_eq!(sample.mode, Mode::Closed { key: "k".into() });
    assert_eq!((sample.metrics.listen, sample.telemetry.sample_ratio), (None, 0.5));
    assert_eq!(sample.telemetry.log.format, LogFormat::Json);
    assert_eq!(read(&env(&[("P2PSB_SERVERS", "https://a:7400")])).servers, ["https://a:7400"]);
    assert_eq!(read(&env(&[("P2PSB_SERVERS", "")])).servers, [""; 0]);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_what_was_meant() {
    let (written, spec) = file("[limits]\nsesions = 1\n");
    let said = error(&spec);
    assert!(said.contains("`limits.sesions`") && said.contains("did you mean `sessions`?"), "{said}");
    assert!(said.contains(written.path().to_str().unwrap()), "{said}");
    let said = error(&env(&[("P2PSB_LIMITS__COLOUR", "red")]));
    assert!(
        said.contains("P2PSB_LIMITS__COLOUR") && said.contains("known here: sessions, ports, grace"),
        "{said}"
    );
    let said = error(&env(&[("P2PSB_LISTN", "x")]));
    assert!(said.contains("`listn`") && said.contains("P2PSB_LISTN") && said.contains("`listen`"), "{said}");
    let said = error(&set(&["nothing.at.all=1"]));
    assert!(said.contains("`nothing`") && said.contains("--set nothing.at.all"), "{said}");
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    let said = error(&env(&[("P2PSB_LIMITS__SESSIONS", "many")]));
    assert!(said.contains("`limits.sessions`") && said.contains("P2PSB_LIMITS__SESSIONS"), "{said}");
    let (_file, spec) = file("[limits]\nports = [1, 70000]\n");
    let said = error(&spec);
    assert!(said.contains("`limits.ports[1]`") && said.contains("70000"), "{said}");
    let (_file, spec) = file("servers = 'not a list'\n");
    let said = error(&spec);
    assert!(said.contains("`servers`") && said.contains("expected a list"), "{said}");
    let said = error(&set(&["telemetry.log.format=xml"]));
    assert!(said.contains("`telemetry.log.format`") && said.contains("auto, pretty, json"), "{said}");
    let said = error(&set(&["limits=5"]));
    assert!(said.contains("`limits`") && said.contains("expected a section"), "{said}");
    let said = error(&set(&["drain.deadline=soon"]));
    assert!(said.contains("`drain.deadline`"), "{said}");
}

#[test]
fn the_second_stage_says_where_the_value_was_written() {
    let loaded = load::<Sample>(&env(&[("P2PSB_LIMITS__SESSIONS", "0")])).unwrap();
    let said = loaded.meant().unwrap_err().to_string();
    assert!(said.contains("`limits.sessions`") && said.contains("P2PSB_LIMITS__SESSIONS"), "{said}");
    assert!(said.contains("must be at least 1"), "{said}");
    assert_eq!(load::<Sample>(&Spec::default()).unwrap().meant().unwrap(), 10);
}

#[test]
fn files_that_are_missing_or_no_toml_are_named() {
    let spec = Spec { file: Some("/nowhere/at/all.toml".into()), ..Spec::default() };
    assert!(error(&spec).contains("/nowhere/at/all.toml"));
    let (written, spec) = file("listen = \n");
    let said = error(&spec);
    assert!(said.contains(written.path().to_str().unwrap()) && said.contains("line 1"), "{said}");
    let (_file, spec) = file(&"#".repeat(1 + MAX_FILE_BYTES as usize));
    assert!(matches!(load::<Sample>(&spec), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn variables_of_others_and_reserved_ones_are_left_alone() {
    let mut spec = env(&[("PATH", "/bin"), ("P2PSB_CONFIG", "x.toml"), ("P2PSB_DATA_DIR", "/data")]);
    assert!(error(&spec).contains("P2PSB_DATA_DIR"));
    spec.reserved_env = vec!["P2PSB_DATA_DIR".into()];
    assert_eq!(read(&spec).listen.port(), 7000);
    assert!(matches!(load::<Sample>(&env(&[("P2PSB_A____B", "1")])), Err(ConfigError::Variable { .. })));
    assert!(matches!(load::<Sample>(&set(&["limits.sessions"])), Err(ConfigError::Argument { .. })));
}

#[test]
fn secrets_are_read_but_never_shown() {
    let sample = read(&set(&["token=hunter2"]));
    assert_eq!(sample.token.expose(), "hunter2");
    let shown = format!("{sample:?}{}", to_toml(&sample).unwrap());
    assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
}

#[test]
fn a_printed_configuration_reads_back_as_the_same() {
    let original = read(&set(&["servers=a,b", "limits.grace=90s", "listen=[::]:1"]));
    let printed = to_toml(&original).unwrap();
    let (_file, spec) = file(&printed);
    assert_eq!(to_toml(&read(&spec)).unwrap(), printed);
}

#[test]
fn telemetry_is_checked_beyond_its_types() {
    let wrong = |text: &str| {
        let loaded = load::<Sample>(&set(&[text])).unwrap();
        loaded.value.telemetry.check().unwrap_err().to_string()
    };
    assert!(wrong("telemetry.sample_ratio=2").contains("telemetry.sample_ratio"));
    assert!(wrong("telemetry.otlp_endpoint=localhost").contains("telemetry.otlp_endpoint"));
    assert!(wrong("telemetry.otlp_endpoint=https://x:4317").contains("without TLS"));
    assert!(wrong("telemetry.log.filter=a=b=c").contains("telemetry.log.filter"));
    assert!(TelemetryConfig::default().check().is_ok());
}
