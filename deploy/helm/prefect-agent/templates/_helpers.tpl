{{- define "agent.selector" -}}
app: {{ .Values.name | quote }}
{{- end }}

{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/instance: {{ .Values.name | quote }}
app.kubernetes.io/name: prefect-agent
{{- end }}

{{- define "agent.metadata" -}}
name: {{ .Values.name | quote }}
namespace: {{ .Release.Namespace | quote }}
labels:
  {{- include "agent.labels" . | nindent 2 }}
{{- end }}

{{- define "agent.jobNamespace" -}}
{{ .Values.jobs.namespace | default .Release.Namespace }}
{{- end }}

{{- define "agent.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.name }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "agent.api" -}}
{{- if .Values.prefect.api -}}
{{ .Values.prefect.api }}
{{- else if eq .Values.prefect.backend "server" -}}
{{ fail "prefect.api: the address of the server's API is not known" }}
{{- else -}}
https://api.prefect.io
{{- end -}}
{{- end }}

{{- /* Agents of one tenant and namespace share a Lease; the Role names it. */ -}}
{{- define "agent.lease" -}}
{{- if .Values.prefect.tenantId -}}
prefect-agent-{{ .Values.prefect.tenantId }}
{{- else -}}
{{- $host := regexReplaceAll "^[a-z]+://([^/?#]*@)?([^/?#]*).*$" (include "agent.api" .) "${2}" | lower -}}
prefect-agent-{{ regexReplaceAll "[^a-z0-9]+" $host "-" | trimAll "-" | trunc 200 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "agent.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ ternary "@" ":" (hasPrefix "sha256:" $tag) }}{{ $tag }}
{{- end }}

{{- /* Flags on which other objects than the Deployment depend. */ -}}
{{- define "agent.args" -}}
{{- range . }}
{{- if regexMatch "^(--(key|api|backend|namespace|agent-address|lease-name)(=|$)|-[kab])" . }}
{{- fail (printf "extraArgs: %s has a value of its own; see prefect and jobs" (regexFind "^--?[a-z-]+" .)) }}
{{- end }}
- {{ include "agent.literal" . }}
{{- end }}
{{- end }}

{{- /* The kubelet takes $(NAME) for a reference and $$ for one $. */ -}}
{{- define "agent.literal" -}}
{{ . | toString | replace "$" "$$" | quote }}
{{- end }}
