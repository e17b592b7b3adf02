{{- /* What both charts share: each links this folder as templates/common. What is its own is in its _service.tpl. */}}

{{- define "waypost.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Up to 50 characters, so that there is room for what is put behind it. */}}
{{- define "waypost.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "waypost.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "waypost.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "waypost.selectorLabels" -}}
app.kubernetes.io/name: {{ include "waypost.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "waypost.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "waypost.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/part-of: waypost
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "waypost.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "waypost.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "waypost.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The number of replicas that there are at least. */}}
{{- define "waypost.leastReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{ int .Values.autoscaling.minReplicas }}
{{- else -}}{{ int .Values.replicaCount }}{{- end -}}
{{- end -}}

{{/*
Secrets. Each is mounted as a file, which the configuration names: /etc/waypost/secrets/NAME/value. The list, as JSON,
of those that have a value or an existing secret: name, setting (section and key of the configuration that holds the
path), secret and key (where it is), and value if it is inline.
*/}}
{{- define "waypost.secrets" -}}
{{- $fullname := include "waypost.fullname" . -}}
{{- $found := list -}}
{{- range $item := (include "waypost.secretItems" . | fromJson).items -}}
{{- $source := $item.source -}}
{{- if and $source.value $source.existingSecret -}}
{{- fail (printf "%s: set value or existingSecret, not both" $item.values) -}}
{{- end -}}
{{- if $source.existingSecret -}}
{{- $key := required (printf "%s.key is needed: the key in %s" $item.values $source.existingSecret) $source.key -}}
{{- $found = append $found (merge (dict "secret" $source.existingSecret "key" $key "value" "") $item) -}}
{{- else if $source.value -}}
{{- $found = append $found (merge (dict "secret" $fullname "key" $item.name "value" $source.value) $item) -}}
{{- end -}}
{{- end -}}
{{- dict "items" $found | toJson -}}
{{- end -}}

{{- define "waypost.secretPath" -}}
/etc/waypost/secrets/{{ . }}/value
{{- end -}}

{{/*
The configuration, as JSON: what the chart sets, `config` over it, and the paths of secrets. Maps are merged, all else
is replaced; Helm's own merge would keep a `true` that should become `false`.
*/}}
{{- define "waypost.config" -}}
{{- $config := include "waypost.merged" (dict "under" (include "waypost.baseConfig" . | fromJson) "over" .Values.config) | fromJson -}}
{{- range $item := (include "waypost.secrets" . | fromJson).items -}}
{{- if $item.setting -}}
{{- $section := get $config (first $item.setting) | default dict -}}
{{- $_ := set $section (last $item.setting) (include "waypost.secretPath" $item.name) -}}
{{- $_ := set $config (first $item.setting) $section -}}
{{- end -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{- define "waypost.merged" -}}
{{- $merged := deepCopy (.under | default dict) -}}
{{- range $key, $value := .over -}}
{{- $under := get $merged $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $under) -}}
{{- $value = include "waypost.merged" (dict "under" $under "over" $value) | fromJson -}}
{{- end -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- toJson $merged -}}
{{- end -}}

{{/*
TOML. Helm's toToml writes numbers of values as floats, which the programs refuse for counts. A JSON string is a TOML
string. Null is left out.
*/}}
{{- define "waypost.toml" -}}
{{- $plain := list -}}{{- $tables := list -}}{{- $lists := list -}}
{{- range $name := keys . | sortAlpha -}}
{{- $value := get $ $name -}}
{{- if kindIs "map" $value -}}{{- $tables = append $tables $name -}}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (first $value)) -}}{{- $lists = append $lists $name -}}
{{- else if not (kindIs "invalid" $value) -}}{{- $plain = append $plain $name -}}
{{- end -}}
{{- end -}}
{{- range $name := $plain -}}
{{- include "waypost.toml.key" $name }} = {{ include "waypost.toml.value" (get $ $name) }}
{{ end -}}
{{- range $name := $tables }}
[{{ include "waypost.toml.key" $name }}]
{{ include "waypost.toml.lines" (get $ $name) -}}
{{- end -}}
{{- range $name := $lists }}
{{- range $entry := get $ $name }}
[[{{ include "waypost.toml.key" $name }}]]
{{ include "waypost.toml.lines" $entry -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "waypost.toml.lines" -}}
{{- range $key := keys . | sortAlpha -}}
{{- $value := get $ $key -}}
{{- if not (kindIs "invalid" $value) -}}
{{- include "waypost.toml.key" $key }} = {{ include "waypost.toml.value" $value }}
{{ end -}}
{{- end -}}
{{- end -}}

{{- define "waypost.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toRawJson . }}{{- end -}}
{{- end -}}

{{- define "waypost.toml.value" -}}
{{- if kindIs "map" . -}}
{{- $parts := list -}}
{{- range $key := keys . | sortAlpha -}}
{{- $value := get $ $key -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $parts = append $parts (printf "%s = %s" (include "waypost.toml.key" $key) (include "waypost.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{- if $parts -}}{ {{ join ", " $parts }} }{{- else -}}{}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- $parts := list -}}
{{- range $value := . -}}
{{- $parts = append $parts (include "waypost.toml.value" $value) -}}
{{- end -}}
[{{ join ", " $parts }}]
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{/* Seconds until Kubernetes kills: the wait before the signal, the drain of the program, and some to end in. */}}
{{- define "waypost.gracePeriod" -}}
{{- $server := (include "waypost.config" . | fromJson).server | default dict -}}
{{- $drain := 30 -}}
{{- if hasKey $server "shutdown_grace_secs" -}}{{- $drain = int $server.shutdown_grace_secs -}}{{- end -}}
{{- $needed := add (int .Values.preStopSeconds) $drain 1 -}}
{{- $own := int .Values.terminationGracePeriodSeconds -}}
{{- if not $own -}}
{{- add $needed 14 -}}
{{- else if lt $own (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds must be %d or more: preStopSeconds and server.shutdown_grace_secs fit into it" $needed) -}}
{{- else -}}
{{- $own -}}
{{- end -}}
{{- end -}}

{{/* Everywhere, but for where machines of clouds hand out credentials. */}}
{{- define "waypost.outside" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    {{- if not .Values.networkPolicy.allowMetadata }}
    except:
      - 169.254.0.0/16
    {{- end }}
- ipBlock:
    cidr: ::/0
    {{- if not .Values.networkPolicy.allowMetadata }}
    except:
      - fd00:ec2::254/128
      - fe80::/10
    {{- end }}
{{- end -}}
