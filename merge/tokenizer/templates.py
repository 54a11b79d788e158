"""Chat templates by name, and which one a result gets."""

from collections import Counter
from collections.abc import Mapping

from merge.checkpoint.index import ModelIndex
from merge.recipe.recipe import Recipe

_SYSTEM_FIRST = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] | trim -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
)

TEMPLATES: Mapping[str, str] = {
    "alpaca": _SYSTEM_FIRST + "{{- bos_token -}}{%- if system -%}{{- system + '\\n\\n' -}}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}{{- '### Instruction:\\n' + turn['content'] | trim + '\\n\\n' -}}"
    "{%- else -%}{{- '### Response:\\n' + turn['content'] | trim + eos_token + '\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}",
    "chatml": "{%- for turn in messages -%}"
    "{{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] | trim + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    "exaone": "{%- for turn in messages -%}"
    "{%- if loop.first and turn['role'] != 'system' -%}{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}"
    "{{- '[|' + turn['role'] + '|]' + turn['content'] | trim -}}"
    "{{- '\\n' if turn['role'] == 'user' else '[|endofturn|]\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}",
    "llama3": "{{- bos_token -}}{%- for turn in messages -%}"
    "{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- turn['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}",
    "mistral": _SYSTEM_FIRST + "{{- bos_token -}}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}"
    "{%- set said = system + '\\n\\n' + turn['content'] if loop.first and system else turn['content'] -%}"
    "{{- '[INST] ' + said | trim + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + turn['content'] | trim + eos_token -}}{%- endif -%}"
    "{%- endfor -%}",
}
"""How each family writes a conversation: turns in order, ``add_generation_prompt`` opens the answer."""


def chosen_template(recipe: Recipe, models: Mapping[str, ModelIndex]) -> str | None:
    """The Jinja text that the recipe asks for; ``None`` where the tokenizer's own stays.

    ``auto`` is the template that most of the models have; of equals the base's, else the first one's.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return None
    if wanted != "auto":
        return TEMPLATES.get(wanted, wanted)
    keys = [key for key in ("base", *recipe.source_ids()) if key in models]
    found = [facts.chat_template for key in keys if (facts := models[key].tokenizer) is not None]
    votes = Counter(template for template in found if template is not None)
    return max(votes, key=lambda template: votes[template], default=None)
