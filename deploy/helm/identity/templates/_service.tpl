{{/* What is the identity server's own. */}}

{{- define "waypost.program" -}}waypost-identity{{- end -}}
{{- define "waypost.publicPort" -}}8090{{- end -}}
{{- define "waypost.operationsPort" -}}8091{{- end -}}
{{- define "waypost.internalPort" -}}{{ if .Values.internal.enabled }}8092{{ end }}{{- end -}}

{{/* What people and homeservers may reach; the internal API is not on this port. */}}
{{- define "waypost.paths" -}}
{{ dict "items" (list "/_matrix/identity" "/_waypost") | toJson }}
{{- end -}}

{{/* Not empty: there can be one process only. */}}
{{- define "waypost.alone" -}}
{{- if eq .Values.database.type "sqlite" -}}alone{{- end -}}
{{- end -}}

{{- define "waypost.validate" -}}
{{- if not .Values.serverName -}}
{{- fail "serverName is needed: the name in signatures, such as id.example.com; it must not change later" -}}
{{- end -}}
{{- $secrets := dict -}}
{{- range $item := (include "waypost.secrets" . | fromJson).items -}}
{{- $_ := set $secrets $item.name true -}}
{{- end -}}
{{- if eq .Values.database.type "sqlite" -}}
{{- if or .Values.autoscaling.enabled (ne (int .Values.replicaCount) 1) -}}
{{- fail "database.type sqlite is for one replica: set replicaCount to 1 and autoscaling.enabled to false, or use postgresql" -}}
{{- end -}}
{{- if hasKey $secrets "database-url" -}}
{{- fail "secrets.databaseUrl is set and database.type is sqlite: set it to postgresql" -}}
{{- end -}}
{{- else -}}
{{- range $name, $what := dict "database-url" "secrets.databaseUrl" "storage-key" "secrets.storageKey" "signing-key" "secrets.signingKey" -}}
{{- if not (hasKey $secrets $name) -}}
{{- fail (printf "%s is needed with database.type postgresql. This chart makes no keys, so that no upgrade can change them: `waypost-identity keys storage` and `waypost-identity keys signing` print them" $what) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.internal.enabled (not (hasKey $secrets "internal-secret")) -}}
{{- fail "secrets.internalSecret is needed with internal.enabled" -}}
{{- end -}}
{{- end -}}

{{- define "waypost.secretItems" -}}
{{- $s := .Values.secrets -}}
{{- $items := list
    (dict "name" "database-url" "values" "secrets.databaseUrl" "source" $s.databaseUrl "setting" (list "database" "url_file"))
    (dict "name" "storage-key" "values" "secrets.storageKey" "source" $s.storageKey "setting" (list "keys" "storage_key_file"))
    (dict "name" "signing-key" "values" "secrets.signingKey" "source" $s.signingKey "setting" (list "keys" "signing_key_file"))
    (dict "name" "smtp-password" "values" "secrets.smtpPassword" "source" $s.smtpPassword "setting" (list "email" "smtp_password_file"))
    (dict "name" "sms-password" "values" "secrets.smsPassword" "source" $s.smsPassword "setting" (list "sms" "password_file"))
    (dict "name" "internal-secret" "values" "secrets.internalSecret" "source" $s.internalSecret "setting" (list "internal" "secret_file"))
    (dict "name" "proxy-url" "values" "secrets.proxyUrl" "source" $s.proxyUrl "setting" (list "outbound" "proxy_url_file"))
-}}
{{- range $name, $source := .Values.extraSecrets -}}
{{- $items = append $items (dict "name" (printf "extra-%s" $name) "values" (printf "extraSecrets.%s" $name) "source" $source) -}}
{{- end -}}
{{- dict "items" $items | toJson -}}
{{- end -}}

{{- define "waypost.baseConfig" -}}
{{- $listen := dict
    "public" (printf "%s:%s" .Values.listenAddress (include "waypost.publicPort" .))
    "operations" (printf "%s:%s" .Values.listenAddress (include "waypost.operationsPort" .)) -}}
{{- with include "waypost.internalPort" . -}}
{{- $_ := set $listen "internal" (printf "%s:%s" $.Values.listenAddress .) -}}
{{- end -}}
{{- dict
    "listen" $listen
    "identity" (dict
        "server_name" .Values.serverName
        "public_base_url" (.Values.publicBaseUrl | default (printf "https://%s" .Values.serverName))
        "data_dir" "/var/lib/waypost")
    "log" (dict "format" "json")
    | toJson -}}
{{- end -}}

{{/* The volume for the database and the keys that are made at the first start; with PostgreSQL nothing in it is kept. */}}
{{- define "waypost.dataVolume" -}}
{{- if eq .Values.database.type "sqlite" -}}
persistentVolumeClaim:
  claimName: {{ .Values.persistence.existingClaim | default (printf "%s-data" (include "waypost.fullname" .)) }}
{{- else -}}
emptyDir:
  sizeLimit: 256Mi
{{- end -}}
{{- end -}}

{{- define "waypost.outsideIs" -}}Homeservers, gateways of text messages, a proxy.{{- end -}}

{{- define "waypost.egress" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $items := list (dict "name" "Mail." "ports" $policy.smtp.ports "to" $policy.smtp.to) -}}
{{- if eq .Values.database.type "postgresql" -}}
{{- $items = append $items (dict "name" "PostgreSQL." "ports" $policy.postgresql.ports "to" $policy.postgresql.to) -}}
{{- end -}}
{{- dict "items" $items | toJson -}}
{{- end -}}

{{- define "waypost.testScript" -}}
wget -q -O - "$URL/_matrix/identity/versions" | grep '"versions"'
wget -q -O - "$URL/_matrix/identity/v2" | grep '{}'
{{- end -}}
