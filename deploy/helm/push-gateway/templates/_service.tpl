{{/* What is the push gateway's own. */}}

{{- define "waypost.program" -}}waypost-push-gateway{{- end -}}
{{- define "waypost.publicPort" -}}5000{{- end -}}
{{- define "waypost.operationsPort" -}}5001{{- end -}}
{{- define "waypost.internalPort" -}}{{- end -}}

{{- define "waypost.paths" -}}
{{ dict "items" (list "/_matrix/push/v1/notify") | toJson }}
{{- end -}}

{{/* Never: any number of replicas will do. */}}
{{- define "waypost.alone" -}}{{- end -}}

{{/* The names of secrets of the entry of `apps` with this number. */}}
{{- define "waypost.appSecret" -}}
{{ printf "app-%d-%s" .number (.key | trimSuffix "_file" | replace "_" "-") }}
{{- end -}}

{{/* The push services that an entry of `apps` has a table for: one, which `waypost.validate` sees to. */}}
{{- define "waypost.appService" -}}
{{- $found := list -}}
{{- range $service := list "apns" "fcm" "webpush" "unifiedpush" -}}
{{- if hasKey $ $service -}}{{- $found = append $found $service -}}{{- end -}}
{{- end -}}
{{- join "," $found -}}
{{- end -}}

{{- define "waypost.validate" -}}
{{- $secrets := dict -}}
{{- range $item := (include "waypost.secrets" . | fromJson).items -}}
{{- $_ := set $secrets $item.name true -}}
{{- end -}}
{{- if and (hasKey $secrets "redis-url") (not (hasKey $secrets "memory-secret")) -}}
{{- fail "secrets.memorySecret is needed with secrets.redisUrl. This chart makes none, so that no upgrade can change it: `openssl rand -hex 32` prints one" -}}
{{- end -}}
{{- if hasKey .Values.config "apps" -}}
{{- fail "config.apps is not read here: use apps" -}}
{{- end -}}
{{- range $number, $app := .Values.apps -}}
{{- if not (has (include "waypost.appService" $app) (list "apns" "fcm" "webpush" "unifiedpush")) -}}
{{- fail (printf "apps.%d needs one of apns, fcm, webpush and unifiedpush, with the keys of that push service below it" $number) -}}
{{- end -}}
{{- range $key, $source := $app.secrets -}}
{{- if not (hasKey $secrets (include "waypost.appSecret" (dict "number" $number "key" $key))) -}}
{{- fail (printf "apps.%d.secrets.%s needs value or existingSecret" $number $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "waypost.secretItems" -}}
{{- $s := .Values.secrets -}}
{{- $items := list
    (dict "name" "redis-url" "values" "secrets.redisUrl" "source" $s.redisUrl "setting" (list "seen" "redis_url_file"))
    (dict "name" "memory-secret" "values" "secrets.memorySecret" "source" $s.memorySecret "setting" (list "seen" "secret_file"))
    (dict "name" "proxy-url" "values" "secrets.proxyUrl" "source" $s.proxyUrl "setting" (list "outbound" "proxy_url_file"))
-}}
{{- range $number, $app := .Values.apps -}}
{{- range $key, $source := $app.secrets -}}
{{- $items = append $items (dict
      "name" (include "waypost.appSecret" (dict "number" $number "key" $key))
      "values" (printf "apps.%d.secrets.%s" $number $key) "source" $source) -}}
{{- end -}}
{{- end -}}
{{- range $name, $source := .Values.extraSecrets -}}
{{- $items = append $items (dict "name" (printf "extra-%s" $name) "values" (printf "extraSecrets.%s" $name) "source" $source) -}}
{{- end -}}
{{- dict "items" $items | toJson -}}
{{- end -}}

{{- define "waypost.baseConfig" -}}
{{- $apps := list -}}
{{- range $number, $app := .Values.apps -}}
{{- $entry := deepCopy (omit $app "secrets") -}}
{{- $table := get $entry (include "waypost.appService" $entry) | default dict -}}
{{- range $key, $source := $app.secrets -}}
{{- $name := include "waypost.appSecret" (dict "number" $number "key" $key) -}}
{{- $_ := set $table $key (include "waypost.secretPath" $name) -}}
{{- end -}}
{{- $apps = append $apps $entry -}}
{{- end -}}
{{- dict
    "listen" (dict
        "public" (printf "%s:%s" .Values.listenAddress (include "waypost.publicPort" .))
        "operations" (printf "%s:%s" .Values.listenAddress (include "waypost.operationsPort" .)))
    "log" (dict "format" "json")
    "apps" $apps
    | toJson -}}
{{- end -}}

{{/* It keeps nothing. */}}
{{- define "waypost.dataVolume" -}}{{- end -}}

{{- define "waypost.outsideIs" -}}Push services, and a proxy.{{- end -}}

{{- define "waypost.egress" -}}
{{- $items := list -}}
{{- $redis := .Values.secrets.redisUrl -}}
{{- if or $redis.value $redis.existingSecret -}}
{{- $items = append $items (dict "name" "Redis." "ports" .Values.networkPolicy.redis.ports "to" .Values.networkPolicy.redis.to) -}}
{{- end -}}
{{- dict "items" $items | toJson -}}
{{- end -}}

{{- define "waypost.testScript" -}}
wget -q -O - --header 'Content-Type: application/json' --post-data '{"notification":{"devices":[]}}' \
  "$URL/_matrix/push/v1/notify" | grep '"rejected"'
{{- end -}}
