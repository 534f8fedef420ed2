//! Every message that wrong configuration leads to.

use super::super::layer::Layers;
use super::super::options::read_options;
use super::{error, with_model};

fn of_file(text: &str) -> String {
    error(Layers::new().file("run.toml", text))
}

fn of_set(assignment: &str) -> String {
    let text = with_model("[[pass]]\nalgo = \"rtn\"\n[scheme]\nweights.format = \"int4\"");
    error(Layers::new().file("run.toml", &text).override_set(assignment))
}

#[test]
fn unknown_keys_are_reported_all_at_once() {
    let text =
        with_model("[calibration]\nsampels = 3\n[scheme.weights]\nformat = \"int4\"\nsymetric = true\n[[pass]]\nalgo = \"rtn\"\nzzz = 1");
    let layers = Layers::new().file("run.toml", &text).override_set("harness.bugdet=8GiB");
    let failure = layers.finish().unwrap_err();
    assert_eq!(failure.code(), "config::unknown-key");
    assert_eq!(
        failure.to_string(),
        "4 problems in the configuration:
  `calibration.sampels` in run.toml line 4: unknown key (did you mean `samples`?)
  `scheme.weights.symetric` in run.toml line 7: unknown key (did you mean `symmetric`?)
  `pass.0.zzz` in run.toml line 10: unknown key; known: `algo`, `regions`, `match`, `skip`, `options`
  `harness.bugdet` from `--set harness.bugdet=8GiB`: unknown key (did you mean `budget`?)"
    );
}

#[test]
fn wrong_types_are_reported_together() {
    let text =
        with_model("[calibration]\nsamples = \"many\"\nseq-len = 0\nseed = -1\n[harness]\nresume = 1\nbudget = \"8GuB\"\nthreads = 1.5");
    assert_eq!(
        of_file(&text),
        "6 problems in the configuration:
  `calibration.samples` in run.toml line 4: expected a whole number of at least 1, got string \"many\"
  `calibration.seq-len` in run.toml line 5: expected a whole number of at least 1, got integer `0`
  `calibration.seed` in run.toml line 6: expected a whole number of at least 0, got integer `-1`
  `harness.resume` in run.toml line 8: expected `true` or `false`, got integer `1`
  `harness.budget` in run.toml line 9: `8GuB` is not a size: unknown unit `GuB` (did you mean `GB`?)
  `harness.threads` in run.toml line 10: expected a whole number of at least 1, got floating point `1.5`"
    );
}

#[test]
fn single_problems_in_files() {
    let cases = [
        (
            "harness.sequence = \"blok\"",
            "`harness.sequence` in run.toml line 3: unknown value `blok` (did you mean `block`?); known: `block`, `layer`",
        ),
        ("harness.sequence = 1", "`harness.sequence` in run.toml line 3: expected one of `block`, `layer`, got integer `1`"),
        ("harness = 1", "`harness` in run.toml line 3: expected a table, got integer `1`"),
        ("pass = { algo = \"rtn\" }", "`pass` in run.toml line 3: expected an array of tables, written `[[pass]]`, got a table"),
        ("[override]\nmatch = \"x\"", "`override` in run.toml line 3: expected an array of tables, written `[[override]]`, got a table"),
        ("[[pass]]\noptions = {}", "`pass.0` in run.toml line 3: `algo` is missing"),
        ("[[pass]]\nalgo = \"a\"\noptions = 1", "`pass.0.options` in run.toml line 5: expected a table, got integer `1`"),
        ("scheme.skip = [\"a\",\n1]", "`scheme.skip.1` in run.toml line 4: expected a string, got integer `1`"),
        ("scheme.weights = {}", "`scheme.weights` in run.toml line 3: `format` is missing"),
        (
            "scheme.weights = \"int4\"",
            "`scheme.weights` in run.toml line 3: expected \"keep\" or a table such as { format = \"int4\", granularity = { group = 64 } }, \
             got string \"int4\"",
        ),
        ("output.format = []", "`output.format` in run.toml line 3: invalid length 0, expected a name or an array of names"),
        (
            "output.max-shard = -5",
            "`output.max-shard` in run.toml line 3: expected a size such as \"8GiB\", or a number of bytes, got integer `-5`",
        ),
        ("harness = 1979-05-27", "`harness` in run.toml line 3: no key takes a date, got `1979-05-27`"),
        ("x = 99999999999999999999", "`x` in run.toml line 3: integer `99999999999999999999` does not fit into 64 bits"),
        ("[a\nb", "TOML syntax in run.toml line 3: unclosed table, expected `]`"),
        ("schema = 1", "TOML syntax in run.toml line 3: duplicate key"),
    ];
    for (text, message) in cases {
        assert_eq!(of_file(&with_model(text)), message, "{text}");
    }
}

#[test]
fn specs_say_what_is_wrong() {
    let cases = [
        (
            "granularity = \"chanel\"",
            "granularity` in run.toml line 3: unknown value `chanel` (did you mean `channel`?); known: `tensor`, `channel`, `token`, `head`, `group`, `block`, `dimension`, `group-out`, `plugin`",
        ),
        ("granularity = \"per_group\"", "granularity` in run.toml line 3: `group` needs a value: `{ group = … }`"),
        ("granularity = { channel = 1 }", "granularity` in run.toml line 3: `channel` takes no value: write `\"channel\"`"),
        (
            "granularity = { group = 1, block = [1, 1] }",
            "granularity` in run.toml line 3: expected a table with one key, got 2: `group`, `block`",
        ),
        (
            "granularity = { group = 0 }",
            "granularity.group` in run.toml line 3: expected a group size of at least 1, or \"auto:N\" with N a power of two, got integer `0`",
        ),
        (
            "granularity = { group = \"auto:100\" }",
            "granularity.group` in run.toml line 3: expected a group size of at least 1, or \"auto:N\" with N a power of two, got string \"auto:100\"",
        ),
        (
            "granularity = { block = [0, 1] }",
            "granularity.block.0` in run.toml line 3: expected a whole number of at least 1, got integer `0`",
        ),
        ("granularity = \"token\", group-size = 3", "group-size` in run.toml line 3: `granularity` is string \"token\" already"),
        ("group-size = 3, groupsize = 4", "groupsize` in run.toml line 3: `group-size` says the same"),
        (
            "convention = \"full\"",
            "convention` in run.toml line 3: unknown value `full`; known: `pow-b1`, `pow-b1m1`, `half-range`, `narrow`, `signed-full`",
        ),
        (
            "range = {}",
            "range` in run.toml line 3: expected the id of an observer, or a table with one such as { mse = { norm = 2.4 } }, got an empty table",
        ),
        (
            "range = { a = {}, b = {} }",
            "range` in run.toml line 3: expected the id of an observer, or a table with one such as { mse = { norm = 2.4 } }, got a table with both `a` and `b`",
        ),
        ("range = { mse = 1 }", "range.mse` in run.toml line 3: expected a table, got integer `1`"),
        ("min-threshold = -1.0", "min-threshold` in run.toml line 3: expected a finite number of at least 0, got floating point `-1.0`"),
        ("min-threshold = nan", "min-threshold` in run.toml line 3: `NaN` is not a finite number"),
    ];
    for (text, message) in cases {
        let text = with_model(&format!("scheme.weights = {{ format = \"int4\", {text} }}"));
        assert_eq!(of_file(&text), format!("`scheme.weights.{message}"));
    }
}

#[test]
fn schema_and_model_are_required() {
    assert_eq!(of_file("schema = 2\nmodle = 1"), "`schema` in run.toml line 1: this version reads schema 1, got integer `2`");
    let failure = Layers::new().file("run.toml", "model.path = \"m\"").finish().unwrap_err();
    assert_eq!(
        (failure.to_string().as_str(), failure.hint_text()),
        ("run.toml does not say its schema", Some("put `schema = 1` on its first line"))
    );
    assert_eq!(of_set("schema=2"), "`schema` from `--set schema=2`: this version reads schema 1, got 2");
    let failure = Layers::new().preset("w4a16").finish().unwrap_err();
    assert_eq!((failure.code(), failure.to_string().as_str()), ("config::no-model", "no model is given"));
    assert_eq!(of_file("schema = 1\nmodle = 1"), "`modle` in run.toml line 2: unknown key (did you mean `model`?)");
    assert_eq!(of_file("schema = 1\nmodel = 1"), "`model` in run.toml line 2: expected a table, got integer `1`");
}

#[test]
fn assignments_that_lead_nowhere() {
    let cases = [
        ("gptq.damp=1", "`--set gptq.damp=1`: `gptq` is neither a section nor a pass of this run; its passes: `rtn`"),
        (
            "clibration.seed=1",
            "`--set clibration.seed=1`: `clibration` is neither a section nor a pass of this run (did you mean `calibration`?); its passes: `rtn`",
        ),
        ("pass.3.options.x=1", "`--set pass.3.options.x=1`: `pass` has 1 entry, index 0; there is no `3`"),
        (
            "calibration.samples=abc",
            "`calibration.samples` from `--set calibration.samples=abc`: expected a whole number of at least 1, got string \"abc\"",
        ),
        (
            "scheme.weights.granularity.grup=3",
            "`scheme.weights.granularity` from `--set scheme.weights.granularity.grup=3`: unknown value `grup` (did you mean `group`?); known: `tensor`, `channel`, `token`, `head`, `group`, `block`, `dimension`, `group-out`, `plugin`",
        ),
        ("model.path", "`--set model.path`: no `=`"),
        ("model.path=1.5", "`model.path` from `--set model.path=1.5`: expected a string, got floating point `1.5`"),
    ];
    for (assignment, message) in cases {
        assert_eq!(of_set(assignment), message);
    }
    let twice = with_model("[[pass]]\nalgo = \"rtn\"\n[[pass]]\nalgo = \"rtn\"");
    let failure = Layers::new().file("run.toml", &twice).override_set("rtn.a=1").finish().unwrap_err();
    assert_eq!(failure.to_string(), "`--set rtn.a=1`: 2 passes are called `rtn`");
    assert_eq!(failure.hint_text(), Some("name one by its place, such as `pass.0.options.…`"));
}

#[test]
fn options_of_a_pass_are_read_with_their_origins() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Options {
        #[allow(dead_code, reason = "only its type matters here")]
        damp: Option<f64>,
    }
    let text = with_model("[[pass]]\nalgo = \"gptq\"\noptions = { dmap = 1, damp = 0.01 }");
    let merged = Layers::new().file("run.toml", &text).override_set("gptq.damp=x").finish_traced().unwrap();
    assert_eq!(merged.origins.get("pass.0.options.dmap").as_deref(), Some("in run.toml line 5"));
    let failure = read_options::<Options>(&merged.run.passes[0].options, "pass.0.options", &merged.origins).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "2 problems in the configuration:
  `pass.0.options.dmap` in run.toml line 5: unknown key (did you mean `damp`?)
  `pass.0.options.damp` from `--set gptq.damp=x`: expected a number, got string \"x\""
    );
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for text in [format!("a = {}", "[".repeat(100_000)), format!("a{} = 1", ".a".repeat(100_000)), format!("[a{}]", ".a".repeat(100_000))] {
        let message = of_file(&with_model(&text));
        assert!(message.starts_with("TOML syntax in run.toml"), "{}: {}", &text[..9], &message[..message.len().min(200)]);
    }
    assert!(Layers::new().override_set(&format!("output.path={}", "[".repeat(100_000))).finish().is_err());
}
