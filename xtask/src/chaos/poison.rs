//! Bad runs, drawn from a seed: of each kind as many different ones as there are numbers.

use std::fmt::Write;
use std::time::Duration;

use agent_testkit::prefect::verbatim;
use agent_testkit::{Course, Verdict};
use fastrand::Rng;
use serde_json::{Map, Value, json};

/// The largest text in a bad run, in bytes: a little less than the API takes.
const MAX_TEXT_BYTES: usize = 4_900_000;
/// Over what time bad runs become due, in milliseconds.
const DUE_WITHIN_MS: u64 = 9_000;
/// Images of this repository are for the admission webhook.
const WEBHOOK_IMAGE: &str = "poison.invalid/webhook";

/// A run with which something is wrong.
#[derive(Debug)]
pub(super) struct Bad {
    /// When it is due, from the beginning.
    pub(super) due: Duration,
    /// What is wrong, for people.
    pub(super) what: String,
    pub(super) run_config: Value,
    /// What its state's context holds.
    pub(super) context: Value,
    /// Where its job template is on the template server.
    pub(super) template_path: Option<String>,
    pub(super) course: Course,
    /// Whether it can do nothing but fail.
    pub(super) hopeless: bool,
}

impl Bad {
    /// Draws a bad run.
    pub(super) fn draw(random: &mut Rng) -> Self {
        let kinds = [
            alias_bomb,
            deep_nest,
            wide_map,
            odd_number,
            nul,
            long_text,
            metadata,
            invalid_field,
            unknown_host,
            template_server,
            webhook,
            run_config_type,
            pull_failure,
            last_words,
        ];
        let due = Duration::from_millis(random.u64(0..DUE_WITHIN_MS));
        let kind = kinds[random.usize(0..kinds.len())];
        Self {
            due,
            ..kind(random)
        }
    }

    fn new(what: impl Into<String>, mut run_config: Value) -> Self {
        if run_config.get("type").is_none() {
            run_config["type"] = json!("KubernetesRun");
        }
        Self {
            due: Duration::ZERO,
            what: what.into(),
            run_config,
            context: json!({}),
            template_path: None,
            course: Course::succeeds_after(Duration::ZERO),
            hopeless: false,
        }
    }

    fn hopeless(self) -> Self {
        Self {
            hopeless: true,
            ..self
        }
    }
}

fn with_container(mut container: Value) -> Value {
    container["name"] = json!("flow");
    json!({"spec": {"backoffLimit": 0, "template": {"spec": {"containers": [container]}}}})
}

fn inline(what: impl Into<String>, template: Value) -> Bad {
    Bad::new(what, json!({"job_template": template}))
}

/// A number whose magnitude is random too.
fn magnitude(random: &mut Rng, max: usize) -> usize {
    let bits = random.u32(0..=max.ilog2());
    random.usize(1..=(2usize << bits).min(max))
}

fn alias_bomb(random: &mut Rng) -> Bad {
    let len = magnitude(random, 60_000);
    let (levels, fan) = (random.usize(1..30), random.usize(2..12));
    let open_close = if random.bool() {
        ("[", "]")
    } else {
        ("{", "}")
    };
    let mut text = format!("a0: &a0 \"{}\"\n", "x".repeat(len));
    for level in 1..=levels {
        let _ = write!(text, "a{level}: &a{level} {}", open_close.0);
        for n in 0..fan {
            let key = if open_close.0 == "{" {
                format!("k{n}: ")
            } else {
                String::new()
            };
            let _ = write!(text, "{key}*a{}, ", level - 1);
        }
        let _ = writeln!(text, "{}", open_close.1);
    }
    text.push_str("spec: {template: {spec: {containers: [{name: flow}]}}}\n");
    inline(
        format!("aliases, {levels} levels of {fan} with {len} bytes"),
        json!(text),
    )
}

fn deep_nest(random: &mut Rng) -> Bad {
    let depth = magnitude(random, 600);
    let nest = (0..depth).fold(json!(1), |inner, _| match depth % 2 {
        0 => json!([inner]),
        _ => json!({"a": inner}),
    });
    let what = format!("nested {depth} deep");
    match random.u8(0..4) {
        0 => Bad::new(what + " in env", json!({"env": {"A": nest}})),
        1 => inline(what + " in the template", json!({"x": nest})),
        2 => inline(
            what + " in the template's text",
            json!(format!("x: {}{}", "[".repeat(depth), "]".repeat(depth))),
        ),
        _ => Bad {
            context: json!({"odd": nest}),
            ..Bad::new(what + " in the context", json!({}))
        },
    }
}

fn wide_map(random: &mut Rng) -> Bad {
    let count = magnitude(random, 60_000);
    let map: Map<String, Value> = (0..count).map(|n| (format!("K{n}"), json!("v"))).collect();
    let what = format!("{count} members");
    match random.u8(0..3) {
        0 => Bad::new(what + " of env", json!({"env": map})),
        1 => {
            let mut template = with_container(json!({}));
            template["metadata"] = json!({"annotations": map});
            inline(what + " of annotations", template)
        }
        _ => Bad {
            context: json!(map),
            ..Bad::new(what + " of the context", json!({}))
        },
    }
}

fn odd_number(random: &mut Rng) -> Bad {
    let digits = "7".repeat(random.usize(20..400));
    let exponent = random.usize(309..9_999);
    let number = [format!("1e{exponent}"), format!("-1e{exponent}"), digits];
    let number = verbatim(&number[random.usize(0..3)]);
    let what = "a number out of range";
    match random.u8(0..3) {
        0 => Bad::new(what, json!({"cpu_limit": number})),
        1 => inline(what, json!({"spec": {"backoffLimit": number}})),
        _ => Bad {
            context: json!({"odd": number}),
            ..Bad::new(what, json!({}))
        },
    }
}

fn nul(random: &mut Rng) -> Bad {
    let text = format!(
        "{}\0{}",
        "a".repeat(magnitude(random, 100)),
        random.alphanumeric()
    );
    match random.u8(0..4) {
        0 => Bad::new("NUL in env", json!({"env": {"A": text}})),
        1 => Bad::new("NUL in the image", json!({"image": text})),
        // What is behind the longest name is cut off, and the NUL with it.
        2 => inline("NUL in the name", {
            let mut template = with_container(json!({}));
            template["metadata"] = json!({"name": text});
            template
        }),
        _ => inline("NUL in the template's text", json!(text)).hopeless(),
    }
}

fn long_text(random: &mut Rng) -> Bad {
    let len = magnitude(random, MAX_TEXT_BYTES);
    let text = random.alphanumeric().to_string().repeat(len);
    let what = format!("{len} bytes");
    match random.u8(0..4) {
        0 => Bad::new(what + " of env", json!({"env": {"A": text}})),
        1 => Bad::new(what + " of image", json!({"image": text})),
        2 => inline(what + " of template", json!(text)).hopeless(),
        _ => Bad {
            context: json!({"odd": text}),
            ..Bad::new(what + " of context", json!({}))
        },
    }
}

fn metadata(random: &mut Rng) -> Bad {
    let number = random.u32(..).to_string();
    let fields = [
        ("resourceVersion", json!(number)),
        ("uid", json!(number)),
        ("creationTimestamp", json!("2024-02-30T00:00:00Z")),
        ("creationTimestamp", json!(number)),
        ("generation", json!(number)),
        ("managedFields", json!(number)),
        ("ownerReferences", json!([{"name": number}])),
        ("finalizers", json!([number, "not a name"])),
        ("namespace", json!(format!("other-{number}"))),
    ];
    let (field, value) = &fields[random.usize(0..fields.len())];
    let mut template = with_container(json!({}));
    template["metadata"] = json!({*field: value});
    let bad = inline(format!("metadata.{field}: {value}"), template);
    match *field {
        "resourceVersion" => bad.hopeless(),
        _ => bad,
    }
}

fn invalid_field(random: &mut Rng) -> Bad {
    let odd = ["Not_A_Name", "-", "a..b", "ä", "x y", "\u{202e}x", ""][random.usize(0..7)];
    let long = odd.repeat(magnitude(random, 3_000));
    let what = format!("{odd:?}, {} bytes", long.len());
    let mut template = with_container(json!({}));
    match random.u8(0..5) {
        0 => template["metadata"] = json!({"name": long}),
        1 => template["metadata"] = json!({"labels": {"team": long}}),
        2 => template["metadata"] = json!({"labels": {long: "x"}}),
        3 => return Bad::new(what + " as a quantity", json!({"memory_limit": long})),
        _ => template["spec"]["template"]["spec"]["restartPolicy"] = json!(long),
    }
    inline(what, template)
}

fn unknown_host(random: &mut Rng) -> Bad {
    let name = random.u32(..);
    let address = match random.u8(0..5) {
        0 => format!("http://host-{name}.invalid/job.yaml"),
        1 => format!("https://host-{name}.invalid/job.yaml"),
        2 => format!("http://127.0.0.1:1/{name}.yaml"),
        3 => format!("ftp://host-{name}.invalid/job.yaml"),
        _ => format!("/etc/{name}.yaml"),
    };
    Bad::new(address.clone(), json!({"job_template_path": address})).hopeless()
}

fn template_server(random: &mut Rng) -> Bad {
    let way = [
        "hang", "drip", "redirect", "huge", "error", "wait", "garbage", "closed",
    ];
    let way = way[random.usize(0..way.len())];
    let path = format!("/{way}/{}", random.u16(..));
    Bad {
        template_path: Some(path.clone()),
        ..Bad::new(format!("template server: {path}"), json!({})).hopeless()
    }
}

fn webhook(random: &mut Rng) -> Bad {
    let verdict = ["deny", "error", "timeout", "echo"][random.usize(0..4)];
    let number = random.u16(1..4_000);
    let image = format!("{WEBHOOK_IMAGE}:{verdict}-{number}");
    inline(image.clone(), with_container(json!({"image": image}))).hopeless()
}

/// What the admission webhook says to a Job.
pub(super) fn verdict(job: &Value) -> Verdict {
    let image = &job["spec"]["template"]["spec"]["containers"][0]["image"];
    let image = image.as_str().unwrap_or_default();
    let order = image.strip_prefix(WEBHOOK_IMAGE).unwrap_or_default();
    let Some((verdict, number)) = order.trim_start_matches(':').split_once('-') else {
        return Verdict::Allow;
    };
    let number: u64 = number.parse().unwrap_or(1);
    match verdict {
        "deny" => Verdict::Deny {
            code: [400, 401, 403, 409, 422, 429, 500, 503][number as usize % 8],
            message: format!("rule {number}"),
        },
        "error" => Verdict::Error,
        "timeout" => Verdict::Timeout(Duration::from_millis(number)),
        _ => Verdict::deny("x".repeat(number as usize * 256)),
    }
}

fn run_config_type(random: &mut Rng) -> Bad {
    let odd = [
        json!("DockerRun"),
        json!("LocalRun"),
        json!(""),
        json!(7),
        json!(null),
        json!(["KubernetesRun"]),
        json!(format!("Run{}", random.u16(..))),
    ];
    let odd = &odd[random.usize(0..odd.len())];
    Bad::new(format!("run config of type {odd}"), json!({"type": odd})).hopeless()
}

fn pull_failure(random: &mut Rng) -> Bad {
    let message = random
        .alphanumeric()
        .to_string()
        .repeat(magnitude(random, 20_000));
    Bad {
        course: Course::image_pull_failure(message),
        ..inline("an image that cannot be pulled", with_container(json!({}))).hopeless()
    }
}

fn last_words(random: &mut Rng) -> Bad {
    let mut bytes = vec![0; magnitude(random, 4_096)];
    random.fill(&mut bytes);
    let text: String = bytes.into_iter().map(char::from).collect();
    let course = Course::exits_with(1, Duration::from_millis(random.u64(0..500)));
    Bad {
        course: course.with_log(text.clone()).with_termination_message(text),
        ..inline("a pod with binary last words", with_container(json!({}))).hopeless()
    }
}
