use serde_json::json;

use super::*;

/// Expected texts of this and the next are what Jinja2 with trimmed blocks renders. The shape of ChatML templates: indented blocks, of which trimming must leave nothing but the line feed after each message.
const CHATML: &str = "{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{% endif %}";

/// The shape of LLaMA 3 templates: alternation is checked, contents are stripped by a Python method, the date has a fall-back.
const LLAMA3: &str = "{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}
        {%- set date_string = '26 Jul 2024' %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\\n' }}
{%- endif %}
{{- 'Today: ' + date_string + '\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}";

fn render(source: &str, messages: &Value) -> Result<String> {
    ChatTemplate::new(source.to_owned()).render(messages, "<s>", "</s>")
}

#[test]
fn chatml() {
    let messages = json!([{"role": "user", "content": "Hi <b> & 'you'"}, {"role": "assistant", "content": "Hello."}]);
    let expected =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> & 'you'<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n";
    assert_eq!(render(CHATML, &messages).unwrap(), expected);
}

#[test]
fn llama3() {
    let messages = json!([
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."},
    ]);
    let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\nBe brief.<|eot_id|>\
        <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>";
    assert_eq!(render(LLAMA3, &messages).unwrap(), expected);
}

#[test]
fn a_template_can_refuse() {
    let messages = json!([{"role": "assistant", "content": "Hello."}]);
    let error = render(LLAMA3, &messages).unwrap_err().to_string();
    assert!(error.starts_with("the chat template failed: invalid operation: roles must alternate user/assistant"), "{error}");
    let error = render("{% if %}", &messages).unwrap_err().to_string();
    assert!(error.starts_with("the chat template failed: syntax error: "), "{error}");
}

/// Expected strings are those of Python's `json.dumps(value, ensure_ascii=False)`, with and without `indent=2`.
#[test]
fn tojson_writes_what_python_does() {
    let messages = json!([{"z": "<ü> & 'q' \"d\"", "a": [1, 2.5, true, null], "e": {}}]);
    assert_eq!(render("{{ messages[0] | tojson }}", &messages).unwrap(), r#"{"z": "<ü> & 'q' \"d\"", "a": [1, 2.5, true, null], "e": {}}"#);
    let indented = render("{{ {'k': messages[0].a[:2]} | tojson(indent=2) }}", &messages).unwrap();
    assert_eq!(indented, "{\n  \"k\": [\n    1,\n    2.5\n  ]\n}");
}
