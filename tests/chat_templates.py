"""Chat templates written from the rules of published formats, and the added tokens they speak of."""

from typing import NamedTuple


class Format(NamedTuple):
    """A chat format: its template, its special tokens by name, its other added tokens."""

    template: str
    special: dict[str, str]
    marks: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    tools: bool = False  # whether the template knows tools
    system: bool = True
    named: tuple[tuple[str, str], ...] = ()  # templates beside the default one, by their names


LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
LLAMA_MARKS += ("<|python_tag|>",)
LLAMA_SPECIAL = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
}

_LLAMA_HEAD = """\
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if not in_user is defined %}{% set in_user = true %}{% endif %}
"""
_LLAMA_BODY = """
{%- if messages[0]['role'] == 'system' %}
    {%- set told = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set told = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not in_user %}
    {{- "Answer with a function call where one helps.\\n\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- told }}
{{- "<|eot_id|>" }}
{%- if in_user and tools is not none %}
    {%- if messages | length == 0 %}
        {{- raise_exception("There is no user message for the tools") }}
    {%- endif %}
    {%- set asked = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Here are functions, answer with JSON:\\n\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- asked + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("Only one tool call at once") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_LLAMA_31_DATE = """
{%- if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}
"""
_LLAMA_32_DATE = """
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
"""
_DEEPSEEK = """\
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(first=true, in_tools=false, told='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.told = message['content'] %}{% endif %}
{%- endfor %}
{{- bos_token }}{{ ns.told }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.in_tools = false %}
        {{- '<｜User｜>' + message['content'] }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] %}
        {%- for call in message['tool_calls'] %}
            {%- if ns.first %}
                {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
                {%- set ns.first = false %}
            {%- endif %}
            {{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name']
                + '\\n```json\\n' + call['function']['arguments'] | tojson + '\\n```'
                + '<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {%- if ns.in_tools %}
            {{- '<｜tool▁outputs▁end｜>' + content + eos_token }}
            {%- set ns.in_tools = false %}
        {%- else %}
            {{- '<｜Assistant｜>' + content + eos_token }}
        {%- endif %}
    {%- endif %}
    {%- if message['role'] == 'tool' %}
        {{- '\\n' if ns.in_tools else '<｜tool▁outputs▁begin｜>' }}
        {%- set ns.in_tools = true %}
        {{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor %}
{%- if ns.in_tools %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- if add_generation_prompt and not ns.in_tools %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""
_HERMES_TOOLS = """\
{%- macro kind(value) %}
    {%- if value.type is defined %}{{ {'string': 'str', 'integer': 'int'}.get(value.type, value.type) }}
    {%- else %}Any{% endif %}
{%- endmacro %}
{{- bos_token }}
{{- '<|im_start|>system\\nYou may call functions. Here are the signatures: <tools>' }}
{%- for tool in tools %}
    {%- set tool = tool.function if tool.function is defined else tool %}
    {{- '{"type": "function", "function": ' }}
    {{- '{"name": "' + tool.name + '", "description": "' + tool.name + '(' }}
    {%- for name, value in tool.parameters.properties | items %}
        {{- name + ': ' + kind(value) }}
        {%- if not loop.last %}{{ ', ' }}{% endif %}
    {%- endfor %}
    {{- ') - ' + tool.description + '", "parameters": ' }}
    {{- tool.parameters | tojson(sort_keys=true, separators=(',', ':')) + '}' }}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}
{{- ' </tools>\\nAnswer as <tool_call>\\n{...}\\n</tool_call>' + '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') or (message.role == 'assistant' and message.tool_calls is not defined) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n' }}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments | tojson ~ '}' }}
            {{- '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{ '<|im_start|>tool\\n' }}{% endif %}
        {{- '<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response>' if loop.last else '\\n</tool_response>\\n' }}
        {%- if not loop.last and loop.nextitem.role != 'tool' %}{{ '<|im_end|>' }}
        {%- elif loop.last %}{{ '<|im_end|>' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
_CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token + ' ' -}}
{% else %}
{{ raise_exception('Only user and assistant roles are supported') }}
{% endif %}{% endfor %}"""
_MISTRAL_TOOLS = """\
{%- if messages[0]["role"] == "system" %}
    {%- set told = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == asked[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != "return" %}
                    {%- if value is string %}{{ '"' + key + '": "' + value + '"' }}
                    {%- else %}{{ '"' + key + '": ' + value | tojson }}{% endif %}
                    {%- if not loop.last %}{{ ", " }}{% endif %}
                {%- endfor %}
                {{- "}}" }}
                {{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and told is defined %}
            {{- "[INST] " + told + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if call.id is defined and call.id | length != 9 %}
                {{- raise_exception("An id of a tool call has nine characters") }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("unknown role " + message["role"]) }}
    {%- endif %}
{%- endfor %}
"""
_SMOL = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a small helper.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
_PHI = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set told = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}{% set rest = messages %}{% set told = '' %}{% endif %}
{% for message in rest %}
{% set content = told + message['content'] if loop.index0 == 0 else message['content'] %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- ' '  + content.strip() + ' ' + eos_token -}}
{% endif %}{% endfor %}"""
_TURNS = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>%s\\n' % role }}{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>{}\\n'.format('model') }}{% endif %}"""
_QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- messages[0].content if messages[0].role == 'system' else 'You help.' }}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {{- '<|im_start|>system\\n' ~ (messages[0].content if messages[0].role == 'system' else 'You help.')
        ~ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
            or (message.role == "assistant" and not message.tool_calls) %}
        {%- set content = message.content %}
        {%- if message.role == 'assistant' and message.reasoning_content is string and loop.last %}
            {%- set content = '<think>\\n' ~ message.reasoning_content.strip('\\n') ~ '\\n</think>\\n\\n' ~ content.lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{ call.name }}{{ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' }}{{ message.content }}{{ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
_GRANITE = """\
{%- set day = strftime_now('%B %d, %Y') %}
{%- set ns = namespace(count=0) %}
{{- '<|start_of_role|>system<|end_of_role|>Today is ' ~ day ~ '.' }}
{%- if documents %} Use the documents.{% endif %}
{{- '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' ~ tools | tojson(indent=2) ~ '<|end_of_text|>\\n' }}
{%- endif %}
{%- for document in documents or [] %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
    {{- '<|start_of_role|>document {"id": ' ~ loop.index ~ '}<|end_of_role|>\\n' }}
    {{- document['title'] | upper }}{{ '\\n' ~ document['text'] ~ '<|end_of_text|>\\n' }}
{%- endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'tool' %}{% set ns.count = ns.count + 1 %}{% continue %}{% endif %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|start_of_role|>assistant<|end_of_role|>' }}
        {%- generation %}{{ (message['content'] or '') + '<|end_of_text|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- ['<|start_of_role|>', message['role'], '<|end_of_role|>', message['content'], '<|end_of_text|>\\n'] | join }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{{- ns.count if ns.count }}"""
_TULU = """\
{% if bos_token is defined %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{%- filter trim %}<|{{ message.role }}|>
{{ message.content }}{% endfilter %}
{%- if message.role == 'assistant' and not loop.last %}{{ eos_token }}{% endif %}{{ '\\n' }}
{%- endfor %}
{%- set opening %}{{ unk_token }}<|assistant|>
{% endset %}
{%- if add_generation_prompt %}{{ opening }}{% endif %}{{ pad_token }}{{ sep_token }}"""

CHATML = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
CALL_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_DEEP = "tool▁calls▁begin tool▁calls▁end tool▁call▁begin tool▁call▁end tool▁outputs▁begin"
_DEEP += " tool▁outputs▁end tool▁output▁begin tool▁output▁end tool▁sep"
S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

FORMATS = {
    "llama 3.1": Format(
        _LLAMA_HEAD + _LLAMA_31_DATE + _LLAMA_BODY, LLAMA_SPECIAL, LLAMA_MARKS, tools=True
    ),
    "llama 3.2": Format(
        _LLAMA_HEAD + _LLAMA_32_DATE + _LLAMA_BODY, LLAMA_SPECIAL, LLAMA_MARKS, tools=True
    ),
    "deepseek r1 distill": Format(
        _DEEPSEEK,
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        plain=(
            "<｜User｜>",
            "<｜Assistant｜>",
            "<think>",
            "</think>",
            *(f"<｜{name}｜>" for name in _DEEP.split()),
        ),
        tools=True,
    ),
    "hermes": Format(
        _CHATML,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
        ("<|im_start|>",),
        ("<tools>", "</tools>", *CALL_MARKS),
        tools=True,
        named=(("tool_use", _HERMES_TOOLS),),
    ),
    "mistral": Format(_MISTRAL, S, system=False),
    "mistral with tools": Format(
        _MISTRAL_TOOLS,
        S,
        (
            *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        tools=True,
    ),
    "smollm2": Format(_SMOL, CHATML),
    "zephyr": Format(_ZEPHYR, {**S, "pad_token": "</s>"}),
    "phi 3": Format(
        _PHI,
        {**S, "eos_token": "<|endoftext|>"},
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "phi 4 mini": Format(
        _PHI,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        ("<|end|>",),
        ("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "chatml": Format(_CHATML, CHATML),
    "llama 2": Format(_LLAMA_2, S),
    "turns": Format(
        _TURNS,
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        system=False,
    ),
    "qwen": Format(
        _QWEN,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ("<|im_start|>",),
        ("<think>", "</think>", *CALL_MARKS),
        tools=True,
    ),
    "granite": Format(
        _GRANITE,
        {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"},
        ("<|start_of_role|>", "<|end_of_role|>"),
        tools=True,
    ),
    "tulu": Format(_TULU, {**S, "pad_token": "<pad>"}, plain=("<|user|>", "<|assistant|>")),
}
