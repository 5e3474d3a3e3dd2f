{{- define "dripline.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "dripline.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "dripline.selector" . }}
{{- end -}}

{{- define "dripline.selector" -}}
app.kubernetes.io/name: dripline
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dripline.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "dripline.secret" -}}
{{- required "existingSecret: name a secret with the keys database_url and bus_url (docs/OPERATIONS.md)" .Values.existingSecret -}}
{{- end -}}

{{- define "dripline.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "dripline.name" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "dripline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "dripline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a migration and the services are told alike. */}}
{{- define "dripline.env" -}}
- name: SECRETS_DIR
  value: /etc/dripline/secrets
- name: DATA_DIR
  value: /var/lib/dripline
{{- if and (not .Values.data.enabled) (not (hasKey .Values.settings "ERASURE_JOURNAL")) }}
# Without files that outlive a pod the journal of erasures is kept in the database and its backups alone.
- name: ERASURE_JOURNAL
  value: "off"
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if ne (toString $value) "" }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The claim with the files that outlive a pod; nothing where there are none. */}}
{{- define "dripline.claim" -}}
{{- if .Values.data.enabled -}}
{{ default (printf "%s-data" (include "dripline.name" .)) .Values.data.existingClaim }}
{{- end -}}
{{- end -}}

{{/* Named once more by its key, the URL must be there: without it each pod would start a database of its own. */}}
{{- define "dripline.secretVolume" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "dripline.secret" . }}
      - secret:
          name: {{ include "dripline.secret" . }}
          items: [{key: database_url, path: database_url}]
{{- end -}}

{{- define "dripline.mounts" -}}
- name: secrets
  mountPath: /etc/dripline/secrets
  readOnly: true
- name: data
  mountPath: /var/lib/dripline
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "dripline.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
